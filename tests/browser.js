// Goes through a page as somebody without a mouse would; what it found ends up in the document around it. A test appends it to
// the page, and says before it what WANTED is: the width of the window and the theme of the system.
(async () => {
  const said = [];
  const check = (right, what) => said.push(`${right ? "ok" : "FAILED"}: ${what}`);
  const soon = () => new Promise((done) => setTimeout(done, 150));
  const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  const tip = document.getElementById("tip");
  const background = () => getComputedStyle(document.body).backgroundColor;
  const stops = () => [...document.querySelectorAll("[tabindex]")].map((stop) => stop.tabIndex);
  try {
    const first = document.querySelector("#compare svg");
    await soon();
    check(document.querySelector("#compare svg") === first, "views are drawn once at the start");
    check(document.documentElement.scrollWidth <= innerWidth, `page of ${document.documentElement.scrollWidth} fits ${innerWidth}`);
    check(innerWidth === WANTED.width, `window of ${innerWidth}`);
    const dark = WANTED.theme === "dark";
    check(matchMedia("(prefers-color-scheme: dark)").matches === dark, "the system's theme is as asked for");
    check((background() === "rgb(20, 23, 28)") === dark, `background ${background()}`);
    for (const section of document.querySelectorAll("section[id]")) {
      check(!section.hidden && section.querySelector("svg, table"), `${section.id} shows something`);
    }
    check(Math.max(...stops()) === 0, "no element jumps the queue of Tab");

    const mark = document.querySelector("#compare .mark");
    mark.focus();
    check(!tip.hidden && tip.textContent.includes("mean"), "a bar with the focus says its numbers");
    press("ArrowDown");
    check(document.activeElement !== mark && document.activeElement.matches("#compare .mark"), "arrows go from bar to bar");
    press("Escape");
    check(tip.hidden, "Escape hides what is said");

    const [reference, statistic] = document.querySelectorAll("#controls select");
    const change = async (select, value) => {
      select.focus();
      select.value = value;
      select.dispatchEvent(new Event("change", { bubbles: true }));
      await soon();
    };
    await change(reference, "smartmoe");
    const rows = [...document.querySelectorAll("#table tbody tr")];
    const over = (of) => rows.filter((row) => row.textContent.includes("SmartMoE") === of).map((row) => row.querySelector(".over").textContent);
    check(document.querySelector("#table thead").textContent.includes("over SmartMoE"), "the table follows the reference");
    check(over(true).every((text) => text === "1.00x") && over(false).some((text) => text !== "1.00x"), `others over it ${over(false)}`);
    await change(statistic, "mean");
    check(/ m?s/.test(document.querySelector("#compare .value").textContent), "bars follow the statistic");

    const heads = [...document.querySelectorAll("#table thead button")];
    const head = heads.find((button) => button.textContent === "mean");
    const column = heads.indexOf(head);
    head.click();
    const sorted = [...document.querySelectorAll("#table tbody tr")].map((row) => Number(row.cells[column].dataset.value));
    check(sorted.every((value, index) => !index || sorted[index - 1] <= value), "a heading sorts");
    check(head.parentElement.getAttribute("aria-sort") === "ascending", "and says so");
    const online = heads.find((button) => button.textContent === "online");
    for (const way of ["up", "down"]) {
      online.click();
      const has = [...document.querySelectorAll("#table tbody tr")].map((row) => "value" in row.cells[heads.indexOf(online)].dataset);
      check(has[0] && !has[has.length - 1] && has.lastIndexOf(true) < has.indexOf(false), `cells without a value are last on the way ${way}`);
    }
    const search = document.querySelector("#table input");
    search.value = "smartmoe";
    search.dispatchEvent(new Event("input"));
    const left = [...document.querySelectorAll("#table tbody tr")].filter((row) => !row.hidden);
    check(left.length > 0 && left.every((row) => row.textContent.includes("SmartMoE")), "words filter rows");

    await change(document.querySelector("#case select"), "1");
    for (const name of ["phases", "traffic", "timeline"]) {
      await change(document.querySelector(`#${name} select`), "1");
      check(document.activeElement.matches(`#${name} select`) && document.activeElement.value === "1", `a choice in ${name} keeps the focus`);
    }
    document.querySelector("#routing svg").focus();
    press("ArrowRight");
    check(tip.textContent.includes("MoE layer 0, from iteration 2"), `a cell says ${tip.textContent}`);
    document.querySelector("#traffic svg").focus();
    press("ArrowDown");
    check(tip.textContent.includes("rank 1 to rank 0"), `a pair says ${tip.textContent}`);
    const axis = () => document.querySelector("#timeline .timeline").textContent;
    const whole = axis();
    document.querySelector("#timeline .timeline").focus();
    press("+");
    const near = axis();
    check(near !== whole && document.activeElement.matches("#timeline .timeline"), "a timeline zooms and keeps the focus");
    press("ArrowRight");
    check(axis() !== near, "and moves");
    press("0");
    check(axis() === whole, "and goes back");

    const before = background();
    const theme = document.getElementById("theme");
    theme.click();
    const light = background();
    theme.click();
    check(light === "rgb(255, 255, 255)" && background() === "rgb(20, 23, 28)", `themes ${before}, ${light}, ${background()}`);
  } catch (error) {
    check(false, error.stack);
  }
  const result = parent.document.createElement("pre");
  result.id = "checks";
  result.textContent = said.join("\n");
  parent.document.body.append(result);
})();
