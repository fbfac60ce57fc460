//! Recordings in miniature, of the shapes that other tools write; and mutations of them.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::super::{RoutingTrace, SynthSpec};
use super::*;

fn import(files: &[(&str, &[u8])], options: ImportOptions) -> Result<RoutingTrace, ImportError> {
    let mut importer = Importer::new("t", options);
    for (path, bytes) in files {
        importer.add(path, &mut &bytes[..])?;
    }
    importer.finish()
}

fn one(path: &str, text: &str) -> RoutingTrace {
    import(&[(path, text.as_bytes())], ImportOptions::default()).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn check_error(path: &str, bytes: &[u8], options: ImportOptions, expected: &[&str]) {
    let error = import(&[(path, bytes)], options).expect_err(path).to_string();
    for part in expected {
        assert!(error.contains(part), "{error}\nlacks: {part}");
    }
}

fn rows(trace: &RoutingTrace) -> Vec<&[u32]> {
    trace.counts().chunks_exact(trace.shape().experts).collect()
}

fn has_note(trace: &RoutingTrace, expected: &str) {
    assert!(trace.notes().iter().any(|note| note.contains(expected)), "{:?} lacks {expected}", trace.notes());
}

/// Layers from 3, no rows for experts without tokens, no other columns.
#[test]
fn sparse_csv_of_one_rank() {
    let text = "layer_id,expert_id,count\n3,0,120\n3,1,40\n3,2,96\n4,0,64\n4,2,192\n";
    let trace = one("rank0.csv", text);
    assert_eq!(rows(&trace), [[120, 40, 96], [64, 0, 192]]);
    assert_eq!((trace.shape().entries, trace.shape().top_k), (256, 1));
    has_note(&trace, "numbered from 0: layers 3, 4");
    has_note(&trace, "choices per token are not stated, taken as 1");
    let names = ["layer_id", "expert_id", "count"].map(|name| Some(name.to_owned()));
    let [layer, expert, counts] = names;
    let columns = ColumnNames { layer, expert, counts, ..ColumnNames::default() };
    let options = |top_k| ImportOptions { columns: columns.clone(), top_k: Some(top_k), ..ImportOptions::default() };
    assert_eq!(rows(&import(&[("loads", text.as_bytes())], options(1)).unwrap()), rows(&trace));
    let expected = ["layer 4", "expert 2 is 192 entries of 256", "at most 128", "allow a top_k of 1"];
    check_error("rank0.csv", text.as_bytes(), options(2), &expected);
    let even = b"layer,expert,count\n0,0,9\n0,1,9\n0,2,9\n";
    check_error(
        "even.csv",
        even,
        ImportOptions { top_k: Some(8), ..ImportOptions::default() },
        &["at most 3", "top_k of 3"],
    );
    let wide = ImportOptions { top_k: Some(4), experts: Some(3), ..ImportOptions::default() };
    check_error("even.csv", even, wide, &["at most 6"]);
}

#[test]
fn text_of_every_kind() {
    let plain = one("a.csv", "iteration,layer,expert,entries\n1,0,0,5\n1,0,1,3\n").counts().to_vec();
    assert_eq!(plain, [5, 3]);
    for text in [
        "\u{feff}iteration,layer,expert,entries\r\n1,0,0,5\r\n1,0,1,3\r\n",
        "iteration;layer;expert;entries\n1;0;0;5,0\n1;0;1;3,0\n",
        "Iteration\tLayer\tExpert\tEntries\n1\t0\t0\t5.0\n1\t0\t1\t3e0\n",
        "# recorded\n\"iteration\",\"layer\",\"expert\",\"entries\"\n\"1\",\"0\",\"0\",\"5\"\n1,0,1,3",
        "iteration,layer,tokens_per_expert\n1,0,\"[5, 3]\"\n",
        "iteration,layer,counts\n1,0,5 3\n",
        "layer,expert_0,expert_1\n0,5,3\n",
        "5,3\n",
    ] {
        assert_eq!(one("a.txt", text).counts(), plain, "{text}");
    }
}

/// A data frame without names of its own writes its columns' numbers; a matrix may begin so only where nothing follows.
#[test]
fn numbers_of_experts_are_a_header() {
    let trace = one("loads.csv", "0,1,2,3\n10,20,30,40\n40,30,20,10\n");
    assert_eq!(rows(&trace), [[10, 20, 30, 40], [40, 30, 20, 10]]);
    has_note(&trace, "a first line of 0 to 3 is taken as the numbers of the experts");
    assert_eq!(rows(&one("loads.csv", "0,1\n")), [[0, 1]]);
    assert_eq!(rows(&one("loads.csv", "0,1.0\n1,0\n")), [[0, 1], [1, 0]]);
    assert_eq!(rows(&one("loads.csv", "0\n1\n")), [[1]]);
}

/// An expert a row is counted if its column is named: a column of counts may only have gone unseen.
#[test]
fn one_choice_a_row() {
    let text = b"layer,expert,tokens\n0,0,5\n0,1,3\n0,0,2\n";
    check_error(
        "t.csv",
        text,
        ImportOptions::default(),
        &["columns layer, expert, tokens", "counts in one of entries"],
    );
    let columns = ColumnNames { expert: Some("expert".into()), ..ColumnNames::default() };
    let trace = import(&[("t.csv", text)], ImportOptions { columns, ..ImportOptions::default() }).unwrap();
    assert_eq!((trace.counts(), trace.shape().top_k), (&[2, 1][..], 1));
}

/// Layer, and the experts that one token chose.
#[test]
fn tokens_with_their_experts() {
    let trace = one("selection.csv", "layer_id,expert_ids\n3,0 2\n3,1 2\n4,0 2\n");
    assert_eq!((trace.shape().top_k, trace.shape().entries), (2, 4));
    assert_eq!(rows(&trace), [[1, 1, 2], [2, 0, 2]]);
    has_note(&trace, "rows hold 2 to 4 entries and are scaled to 4 each");
    let lines = "{\"step\": 7, \"layer\": 0, \"rank\": 1, \"top_indices\": [[0, 3], [1, 3], [2, 3], [0, -1]]}\n";
    let options = ImportOptions { tokens_per_micro_batch: Some(2), ..ImportOptions::default() };
    let trace = import(&[("router_trace_rank1.jsonl", lines.as_bytes())], options).unwrap();
    assert_eq!(trace.shape().micro_batches, 2);
    assert_eq!((trace.row(0, 0, 0, 0), trace.iterations()), (&[1, 1, 0, 2][..], &[7][..]));
    check_error("t.csv", b"expert_ids\n1 1\n", ImportOptions::default(), &["t.csv, line 2", "experts that differ"]);
}

#[test]
fn matrices_in_json() {
    let trace = one("loads.json", "[[7,5,3,1],[2,2,6,6]]");
    assert_eq!(rows(&trace), [[7, 5, 3, 1], [2, 2, 6, 6]]);
    let three = "[[[1,3],[2,2]],[[3,1],[4,0]]]";
    let trace = one("loads.json", three);
    assert_eq!((trace.iterations(), trace.row(1, 1, 0, 0)), (&[0, 1][..], &[4, 0][..]));
    for text in [
        "{\"rank\": 0, \"logical_count\": [[[1,3],[2,2]],[[3,1],[4,0]]]}",
        "[[1,3],[2,2]]\n[[3,1],[4,0]]\n",
        "{\"iteration\": 0, \"layer\": 0, \"tpe\": [1, 3]}\n{\"iteration\": 0, \"layer\": 1, \"tpe\": [2, 2]}\n\
         {\"iteration\": 1, \"layer\": 0, \"tpe\": [3, 1]}\n\n{\"iteration\": 1, \"layer\": 1, \"tpe\": [4, 0]}",
    ] {
        assert_eq!(one("t.json", text).counts(), trace.counts(), "{text}");
    }
    assert_eq!(one("t.json", "{\"3\": [1, 3], \"4\": [2, 2]}").counts(), [1, 3, 2, 2]);
    assert_eq!(one("t.json", "{\"expert_ids\": [0, 3], \"counts\": [1, 3]}").counts(), [1, 0, 0, 3]);
    for text in [
        "{\"3\": {\"1\": 1, \"0\": 3}, \"4\": {\"0\": 2, \"1\": 2}}",
        "{\"layer_3\": {\"0\": 3, \"1\": 1}, \"layer_4\": {\"1\": 2, \"0\": 2}}",
        "{\"7\": {\"3\": {\"0\": 3, \"1\": 1}, \"4\": {\"0\": 2, \"1\": 2}}}",
    ] {
        assert_eq!(one("t.json", text).counts(), [3, 1, 2, 2], "{text}");
    }
    assert_eq!(one("t.json", "{\"7\": {\"0\": {\"0\": 3}}, \"9\": {\"0\": {\"0\": 3}}}").iterations(), [7, 9]);
    // Names that say nothing of layers would add them up.
    let unnamed = b"{\"moe_3\": {\"0\": 3}, \"moe_4\": {\"0\": 2}}";
    check_error(
        "t.json",
        unnamed,
        ImportOptions::default(),
        &["`moe_3` among 2 objects", "the number of an iteration, a layer"],
    );
    let batches = one("t.jsonl", "{\"iter\": 1, \"layer\": 2, \"tpe\": [[1, 3], [2, 2]]}");
    assert_eq!((batches.shape().micro_batches, batches.row(0, 0, 1, 0)), (2, &[2, 2][..]));
}

/// The header that NumPy writes, padded to 64 bytes.
fn npy(descr: &str, fortran: bool, shape: &str, values: &[u8]) -> Vec<u8> {
    let fortran = if fortran { "True" } else { "False" };
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}");
    while !(header.len() + 11).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    [b"\x93NUMPY\x01\0", &(header.len() as u16).to_le_bytes()[..], header.as_bytes(), values].concat()
}

fn words(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn arrays_of_numpy() {
    let values = words(&[1, 3, 2, 2, 3, 1, 4, 0]);
    let trace = import(&[("a.npy", &npy("<i4", false, "(2, 2, 2)", &values))], ImportOptions::default()).unwrap();
    assert_eq!(trace.row(1, 1, 0, 0), [4, 0]);
    let fortran = words(&[1, 3, 2, 4, 3, 1, 2, 0]);
    let same = import(&[("a.npy", &npy("<i4", true, "(2, 2, 2)", &fortran))], ImportOptions::default()).unwrap();
    assert_eq!(same.counts(), trace.counts());
    // [token][choice][layer], as one recorder of routing has it.
    let axes = Some(vec![Axis::Token, Axis::Choice, Axis::Layer]);
    let chosen = words(&[0, 1, 2, 3, 0, 0, 1, 1]);
    let options = ImportOptions { axes, ..ImportOptions::default() };
    let trace = import(&[("a.npy", &npy("<i4", false, "(2, 2, 2)", &chosen))], options).unwrap();
    assert_eq!((rows(&trace), trace.shape().top_k), (vec![&[2, 1, 1, 0][..], &[1, 2, 0, 1]], 2));
}

/// Padded tokens have fewer choices, so that the busiest expert may have more than entries over choices.
#[test]
fn padded_choices() {
    let options =
        || ImportOptions { axes: Some(vec![Axis::Token, Axis::Choice]), experts: Some(4), ..ImportOptions::default() };
    let signed = npy("<i4", false, "(4, 2)", &words(&[0, 1, 0, 2, 0, -1, 0, -1]));
    let trace = import(&[("a.npy", &signed)], options()).unwrap();
    assert_eq!((rows(&trace), trace.shape().top_k), (vec![&[4, 2, 2, 0][..]], 2));
    has_note(&trace, "rows hold 6 entries and are scaled to 8 each");
    let choices: Vec<u8> = [0_u16, 1, 0, 2, 0, 65535, 0, 65535].iter().flat_map(|value| value.to_le_bytes()).collect();
    let unsigned = npy("<u2", false, "(4, 2)", &choices);
    assert_eq!(import(&[("a.npy", &unsigned)], options()).unwrap().counts(), trace.counts());
    let lists = "expert_ids\n0 1\n0 2\n0 -1\n0 -1\n";
    assert_eq!(
        import(&[("t.csv", lists.as_bytes())], ImportOptions { axes: None, ..options() }).unwrap().counts(),
        trace.counts()
    );
    // Choices side by side, and those of all tokens in turn.
    let expected = ["a.npy, iteration 0, layer 0", "the choice of token 1 is expert 0, twice", "experts that differ"];
    check_error("a.npy", &npy("<i4", false, "(2, 2)", &words(&[0, 1, 0, 0])), options(), &expected);
    check_error("a.npy", &npy("<i4", true, "(2, 2)", &words(&[0, 0, 1, 0])), options(), &expected);
    // Counts beside each other are no tokens.
    let above = ImportOptions { top_k: Some(2), ..ImportOptions::default() };
    check_error("a.npy", &npy("<i4", false, "(4,)", &words(&[4, 1, 1, 0])), above, &["expert 0 is 4 entries of 6"]);
}

#[test]
fn bad_arrays_say_so() {
    let check = |bytes: &[u8], expected: &[&str]| check_error("a.npy", bytes, ImportOptions::default(), expected);
    check(
        &npy("<i4", false, "(2, 2)", &words(&[1, 2, 3])),
        &["a.npy", "3 values of shape [2, 2]", "expected 4 values"],
    );
    check(&npy("<i4", false, "(1000000000000,)", &words(&[1])), &["axis expert is 1000000000000", "at most 1048576"]);
    check(&npy("<i4", false, "(1, 1, 1, 1, 1, 1)", &words(&[1])), &["[1, 1, 1, 1, 1, 1]", "1 to 5 axes"]);
    check(&npy("|O", false, "(2,)", b""), &["whole numbers or floats"]);
    check(&npy("<i4", false, "(2,)", &words(&[-1, 2])), &["a.npy, [0]: the value is -1", "whole number from 0 to"]);
    check(b"\x93NUMPY\x01\0\xff\xff{", &["cut off"]);
    check(b"\x93NUMPY", &["cut off"]);
}

/// A zip of stored (false) or deflated (true) files.
fn zip(files: &[(&str, &[u8], bool)]) -> Vec<u8> {
    let (mut archive, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes, deflated) in files {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        let data = if *deflated { deflate(bytes) } else { bytes.to_vec() };
        let mut common = Vec::new();
        for short in [20_u16, 0, if *deflated { 8 } else { 0 }, 0, 0] {
            common.extend(short.to_le_bytes());
        }
        for long in [crc.sum(), data.len() as u32, bytes.len() as u32] {
            common.extend(long.to_le_bytes());
        }
        common.extend((name.len() as u16).to_le_bytes());
        common.extend(0_u16.to_le_bytes());
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend((archive.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        archive.extend(b"PK\x03\x04");
        archive.extend(&common);
        archive.extend(name.as_bytes());
        archive.extend(data);
    }
    let start = archive.len() as u32;
    let (size, count) = (directory.len() as u32, files.len() as u16);
    archive.extend(directory);
    archive.extend(b"PK\x05\x06\0\0\0\0");
    archive.extend(count.to_le_bytes());
    archive.extend(count.to_le_bytes());
    archive.extend(size.to_le_bytes());
    archive.extend(start.to_le_bytes());
    archive.extend([0; 2]);
    archive
}

fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn archives_of_every_kind() {
    let csv = b"layer,expert,count\n0,0,5\n0,1,3\n";
    let expected = one("a.csv", "layer,expert,count\n0,0,5\n0,1,3\n");
    let check = |path: &str, bytes: &[u8]| {
        let trace = import(&[(path, bytes)], ImportOptions::default()).unwrap();
        assert_eq!(trace.counts(), expected.counts(), "{path}");
    };
    check("a.csv.gz", &gzip(csv));
    check("a.zip", &zip(&[("a.csv", csv, true)]));
    check("a.zip", &zip(&[("folder/a.csv", csv, false), ("__MACOSX/x", b"?", false)]));
    check("a.npz", &zip(&[("arr_0.npy", &npy("<i4", false, "(1, 2)", &words(&[5, 3])), true)]));
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(csv.len() as u64);
    tar.append_data(&mut header, "a.csv", &csv[..]).unwrap();
    check("a.tar.gz", &gzip(&tar.into_inner().unwrap()));
    // Ranks and layers from names.
    let layers = zip(&[
        ("iter_10/layer_3.csv", b"expert,count\n0,4\n", true),
        ("iter_10/layer_4.csv", b"expert,count\n1,4\n", true),
    ]);
    let trace = import(&[("a.zip", &layers)], ImportOptions::default()).unwrap();
    assert_eq!((rows(&trace), trace.iterations()), (vec![&[4, 0][..], &[0, 4]], &[10][..]));
}

/// Arrays that nothing tells apart would be summed.
#[test]
fn members_of_an_archive_say_nothing_twice() {
    let array = npy("<i4", false, "(1, 2)", &words(&[5, 3]));
    let check = |archive: &[u8], options, expected: &[&str]| check_error("a.npz", archive, options, expected);
    let arrays = |names: [&str; 2]| zip(&names.map(|name| (name, array.as_slice(), true)));
    let expected = ["a.npz/arr_1.npy, [0][0]: iteration 0, layer 0", "rank 0 is in arr_0.npy, too"];
    check(&arrays(["arr_0.npy", "arr_1.npy"]), ImportOptions::default(), &expected);
    let tokens = Some(vec![Axis::Token, Axis::Choice]);
    check(&arrays(["arr_0.npy", "arr_1.npy"]), ImportOptions { axes: tokens, ..ImportOptions::default() }, &expected);
    let nested = zip(&["x.npz", "y.npz"]
        .map(|name| (name, zip(&[("arr_0.npy", &array, false)]), true))
        .each_ref()
        .map(|(name, bytes, deflated)| (*name, bytes.as_slice(), *deflated)));
    check(&nested, ImportOptions::default(), &["rank 0 is in arr_0.npy, too"]);
    let told = import(&[("a.npz", &arrays(["rank0.npy", "rank1.npy"]))], ImportOptions::default()).unwrap();
    assert_eq!(told.shape().ranks, 2);
    let twice = [("a.npz", &arrays(["a.npy", "rank1.npy"])[..]), ("b.npz", &arrays(["a.npy", "rank1.npy"]))];
    assert_eq!(import(&twice, ImportOptions::default()).unwrap().row(0, 0, 0, 0), [10, 6]);
}

#[test]
fn damaged_archives_say_so() {
    let csv = b"layer,expert,count\n0,0,5\n0,1,3\n";
    let whole = zip(&[("a.csv", csv, true)]);
    let check = |path: &str, bytes: &[u8], expected: &str| {
        check_error(path, bytes, ImportOptions::default(), &[path, expected])
    };
    check("a.zip", &whole[..whole.len() - 30], "cut off");
    let mut wrong = whole.clone();
    let crc = whole.windows(4).position(|four| four == b"PK\x01\x02").unwrap() + 16;
    wrong[crc] ^= 1;
    check("a.zip", &wrong, "a.zip/a.csv: cannot be read");
    check("a.csv.gz", &gzip(csv)[..20], "cannot be read");
    check("a.zip", &zip(&[("archive/data.pkl", b"x", false)]), "a PyTorch file");
    check("a.pkl", b"\x80\x04x", "pickled objects");
    check("a.csv", b"\xff\xfei\0", "UTF-16");
    check("a.bin", b"a\0b", "binary data");
}

/// A small file may not unpack to one that fills the memory.
#[test]
fn a_bomb_is_stopped() {
    let zeros = gzip(&vec![b'0'; 1 << 20]);
    let bytes = [gzip(b"expert,count\n0,"), zeros.repeat(70)].concat();
    let error = import(&[("a.csv.gz", &bytes)], ImportOptions::default()).expect_err("a bomb");
    let ImportError::Read { source, .. } = error else { panic!("{error}") };
    assert!(source.to_string().contains("256 times"), "{source}");
}

#[test]
fn iterations_of_other_sizes_are_scaled_to_the_fullest() {
    let mut text = "iteration,rank,layer,micro_batch,expert,entries\n".to_owned();
    for (iteration, hot) in [(1, 5), (11, 15), (21, 25)] {
        for (rank, layer) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            for (expert, count) in [hot, hot, 4, 4].into_iter().enumerate() {
                text += &format!("{iteration},{rank},{layer},0,{expert},{count}\n");
            }
        }
    }
    let trace = one("t.csv", &text);
    assert_eq!((trace.shape().entries, trace.shape().top_k, trace.iterations()), (58, 2, &[1, 11, 21][..]));
    assert_eq!((trace.row(0, 1, 0, 1), trace.row(2, 1, 0, 1)), (&[16, 16, 13, 13][..], &[25, 25, 4, 4][..]));
    has_note(&trace, "rows hold 18 to 58 entries and are scaled to 58 each");
    let options = ImportOptions { entries: Some(4096), ..ImportOptions::default() };
    let trace = import(&[("t.csv", text.as_bytes())], options).unwrap();
    assert_eq!(trace.row(1, 0, 0, 0), [1617, 1617, 431, 431]);
    has_note(&trace, "scaled to 4096 each");
}

#[test]
fn sums_past_32_bits() {
    let text = |count: u64| format!("expert,entries\n0,{count}\n1,{count}\n2,0\n3,0\n");
    for count in [3_000_000_000, 6_000_000_000] {
        let trace = one("t.csv", &text(count));
        assert_eq!(trace.counts(), [1 << 29, 1 << 29, 0, 0]);
        has_note(&trace, &format!("rows hold {} entries and are scaled to 1073741824", 2 * count));
    }
    let expected = ["t.csv, line 2: entries is", "from 0 to 9007199254740992"];
    check_error("t.csv", text(1 << 54).as_bytes(), ImportOptions::default(), &expected);
}

#[test]
fn running_totals() {
    let text = "iteration,expert,count\n1,0,5\n1,1,3\n2,0,9\n2,1,7\n3,0,17\n3,1,7\n";
    let options = ImportOptions { cumulative: true, ..ImportOptions::default() };
    let trace = import(&[("t.csv", text.as_bytes())], options.clone()).unwrap();
    assert_eq!(rows(&trace), [[5, 3], [4, 4], [8, 0]]);
    let expected = ["iteration 2", "expert 0 is 4", "at least 5"];
    check_error("t.csv", b"iteration,expert,count\n1,0,5\n2,0,4\n", options, &expected);
}

#[test]
fn numbers_beyond_the_bound_are_refused() {
    let header = "iteration,rank,layer,micro_batch,expert,entries\n";
    let check = |row: &str, expected: &[&str]| {
        check_error("t.csv", format!("{header}{row}\n1,0,0,0,1,4\n").as_bytes(), ImportOptions::default(), expected);
    };
    check("1,4294967295,0,0,0,4", &["t.csv, line 2: rank is `4294967295`", "from 0 to 1048575"]);
    check("1,0,4294967295,0,0,4", &["layer is", "from 0 to 1048575"]);
    check("1,0,0,4294967295,0,4", &["micro_batch is", "from 0 to 1048575"]);
    check("4294967296,0,0,0,0,4", &["iteration is", "from 0 to 4294967295"]);
    check("1,0,0,0,1000000000000,4", &["expert is", "an expert from 0 to 1048575"]);
    for found in ["-1", "1.5", "nan", "inf", "", "x"] {
        check(&format!("1,0,0,0,0,{found}"), &["t.csv, line 2: entries is", "expected"]);
    }
    // Every number is within bounds, their product is not.
    let rows: String = (0..300).map(|i| format!("{i},{i},{i},{i},{i},4\n")).collect();
    check_error("t.csv", format!("{header}{rows}").as_bytes(), ImportOptions::default(), &["at most 16777216 counts"]);
    let rows: String = (0..300).map(|i| format!("{i},0,0,0,1048575,4\n")).collect();
    check_error(
        "t.csv",
        format!("{header}{rows}").as_bytes(),
        ImportOptions::default(),
        &["t.csv", "at most 16777216"],
    );
}

#[test]
fn what_is_absent_is_said() {
    let zeros = "iteration,layer,expert,entries\n1,0,0,0\n1,0,1,0\n";
    check_error("t.csv", zeros.as_bytes(), ImportOptions::default(), &["t: found 1 rows", "all of them 0"]);
    check_error("t.csv", b"iteration,layer,expert,entries\n", ImportOptions::default(), &["t: found no counts"]);
    check_error("t.csv", b"", ImportOptions::default(), &["t.csv: found no lines"]);
    check_error("t.csv", b"a,b\n1,2\n", ImportOptions::default(), &["columns a, b", "expert_id", "tokens_per_expert"]);
    let columns = ColumnNames { layer: Some("Schicht".into()), ..ColumnNames::default() };
    let options = ImportOptions { columns, ..ImportOptions::default() };
    check_error(
        "t.csv",
        b"layer,counts\n1,2\n",
        options,
        &["no column `Schicht` for the layer", "one of layer, counts"],
    );
    // An idle iteration and a dense layer are left out; a rank that is idle takes its layer's shares.
    let text = "iteration,layer,rank,expert_0,expert_1\n1,0,0,0,0\n1,1,0,6,2\n1,1,1,0,0\n2,0,0,0,0\n2,1,0,0,0\n";
    let trace = one("t.csv", text);
    assert_eq!((rows(&trace), trace.iterations()), (vec![&[6, 2][..], &[6, 2]], &[1][..]));
    has_note(&trace, "without entries and left out: iteration 2");
    has_note(&trace, "without entries and left out: layer 0");
    has_note(&trace, "1 of 2 rows hold no entries and take the shares of their layer");
    let twice = b"layer,expert,count\n0,0,5\n0,1,3\n0,0,5\n";
    check_error("t.csv", twice, ImportOptions::default(), &["t.csv, line 4: expert 0 of", "given a second time"]);
    check_error("t.csv", b"layer,expert,count\n0,0\n", ImportOptions::default(), &["2 fields in line 2", "expected 3"]);
}

/// Two ranks' files add up as ranks; two files without a number as one.
#[test]
fn files_add_up() {
    let file = b"layer,expert,count\n0,0,5\n0,1,3\n";
    let ranks = import(&[("rank0.csv", file), ("rank1.csv", file)], ImportOptions::default()).unwrap();
    assert_eq!((ranks.shape().ranks, ranks.loads(0, 0)), (2, vec![10, 6]));
    let sum = import(&[("a.csv", file), ("b.csv", file)], ImportOptions::default()).unwrap();
    assert_eq!((sum.shape().ranks, sum.row(0, 0, 0, 0)), (1, &[10, 6][..]));
}

/// Numbers of iterations are any that a trace can hold; what is beyond is no iteration 0.
#[test]
fn numbers_in_names_are_kept_or_refused() {
    let file = b"layer,expert,count\n0,0,5\n0,1,3\n";
    let named = |names: [&str; 2]| import(&names.map(|name| (name, &file[..])), ImportOptions::default());
    for word in ["iteration", "iter", "step"] {
        let names = [1_048_575, 2_000_000].map(|number| format!("{word}_{number}.csv"));
        let trace = named([&names[0], &names[1]]).unwrap();
        assert_eq!(trace.iterations(), [1_048_575, 2_000_000]);
    }
    let check = |name: &str, expected: &str| check_error(name, file, ImportOptions::default(), &[name, expected]);
    check("step_4294967296.csv", "step 4294967296 in the name: expected a number from 0 to 4294967295");
    check("rank-1048576.csv", "rank 1048576 in the name: expected a number from 0 to 1048575");
}

#[test]
fn logs_of_the_artifact() {
    let text =
        "\u{feff}0:[[1.0, 3.0, 4.0, 0.0], [4.0, 4.0, 0.0, 0.0]]\n1:[[4.0, 0.0, 4.0, 0.0], [2.0, 2.0, 4.0, 0.0]]\n";
    let names = [1, 11].map(|iteration| [0, 1].map(|rank| format!("table_iter{iteration}_rank{rank}.log")));
    let files: Vec<(&str, &[u8], bool)> =
        names.iter().flatten().map(|name| (name.as_str(), text.as_bytes(), true)).collect();
    let trace = import(&[("logs.zip", &zip(&files))], ImportOptions::default()).unwrap();
    assert_eq!((trace.iterations(), trace.shape().top_k), (&[1, 11][..], 2));
    assert_eq!(trace.row(1, 1, 1, 1), [2, 2, 4, 0]);
    // They do not say of how many choices a token; the rest they do.
    let asked = |options| import(&[("logs.zip", &zip(&files))], options);
    let of_one = asked(ImportOptions { top_k: Some(1), experts: Some(4), ..ImportOptions::default() }).unwrap();
    assert_eq!((of_one.shape().top_k, of_one.counts()), (1, trace.counts()));
    let error = asked(ImportOptions { experts: Some(6), ..ImportOptions::default() }).unwrap_err();
    assert_eq!(error.to_string(), "t: found 4 experts: expected 6, as asked for");
}

/// A trace written as text comes back, whatever its top_k.
#[test]
fn a_trace_comes_back() {
    for (top_k, entries) in [(1, 45), (2, 64), (8, 64)] {
        let spec = SynthSpec { layers: 3, samples: 4, ranks: 2, experts: 8, entries, top_k, ..SynthSpec::default() };
        let trace = spec.generate().unwrap();
        let mut text = "iteration,rank,layer,micro_batch,expert,entries\n".to_owned();
        for (index, count) in trace.counts().iter().enumerate() {
            let (row, expert) = (index / 8, index % 8);
            let (rank, micro_batch, layer) = (row % 2, row / 2 % 4, row / 8 % 3);
            text += &format!("{},{rank},{layer},{micro_batch},{expert},{count}\n", trace.iterations()[row / 24]);
        }
        let options = ImportOptions { top_k: Some(top_k), ..ImportOptions::default() };
        let back = import(&[("t.csv", text.as_bytes())], options).unwrap();
        assert_eq!((back.shape(), back.counts(), back.notes()), (trace.shape(), trace.counts(), &[][..]));
    }
}

/// Seeds of the mutations: one input of every format.
fn corpus() -> Vec<(&'static str, Vec<u8>)> {
    let csv = b"iteration,rank,layer,micro_batch,expert,entries\n1,0,0,0,0,5\n1,0,0,0,1,3\n2,0,0,0,0,4\n".to_vec();
    let array = npy("<i4", false, "(2, 1, 2)", &words(&[1, 3, 2, 2]));
    vec![
        ("a.csv", csv.clone()),
        ("a.csv", b"layer_id;expert_ids\n3;\"0 2\"\n3;1 2\n".to_vec()),
        ("a.tsv", b"layer\texpert_0\texpert_1\n0\t5\t3\n".to_vec()),
        ("a.json", b"[[7,5,3,1],[2,2,6,6]]".to_vec()),
        ("a.json", b"{\"rank\": 0, \"logical_count\": [[[1,3],[2,2]],[[3,1],[4,0]]]}".to_vec()),
        (
            "a.jsonl",
            b"{\"step\": 7, \"layer\": 0, \"top_indices\": [[0, 3], [1, 3]]}\n{\"step\": 8, \"top_indices\": []}"
                .to_vec(),
        ),
        ("a.npy", array.clone()),
        ("a.npz", zip(&[("arr_0.npy", &array, true), ("rank_1.npy", &array, false)])),
        ("a.csv.gz", gzip(&csv)),
        (
            "table_iter1_rank0.log",
            b"0:[[1.0, 3.0, 4.0], [4.0, 4.0, 0.0]]\n1:[[4.0, 0.0, 4.0], [2.0, 2.0, 4.0]]\n".to_vec(),
        ),
    ]
}

/// Changes a few bytes: other bits, other numbers, pieces repeated, left out or moved.
fn mutate(rng: &mut ChaCha8Rng, bytes: &mut Vec<u8>) {
    const NUMBERS: [&str; 8] =
        ["-1", "4294967295", "18446744073709551616", "1e308", "nan", "0", "1048575", "1000000000000"];
    for _ in 0..1 + rng.next_u32() % 4 {
        if bytes.is_empty() {
            return;
        }
        let at = rng.next_u32() as usize % bytes.len();
        let end = at + rng.next_u32() as usize % (bytes.len() - at).min(24);
        match rng.next_u32() % 6 {
            0 => bytes[at] ^= 1 << (rng.next_u32() % 8),
            1 => bytes[at] = rng.next_u32() as u8,
            2 => drop(bytes.drain(at..end)),
            3 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(end..end, piece);
            }
            4 => {
                let number = NUMBERS[rng.next_u32() as usize % NUMBERS.len()];
                bytes.splice(at..(at + 1).min(bytes.len()), number.bytes());
            }
            _ => bytes.truncate(at),
        }
    }
}

/// No panic, and nothing but a sound trace or an error that says something.
#[test]
fn mutated_files_are_read_or_refused() {
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    let (mut read, mut refused) = (0, 0);
    for (path, bytes) in corpus() {
        import(&[(path, &bytes)], ImportOptions::default()).unwrap_or_else(|error| panic!("{path}: {error}"));
        for round in 0..1000 {
            let mut bytes = bytes.clone();
            mutate(&mut rng, &mut bytes);
            let options = ImportOptions { cumulative: round % 5 == 0, ..ImportOptions::default() };
            match import(&[(path, &bytes)], options) {
                Ok(_) => read += 1,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    refused += 1;
                }
            }
        }
    }
    assert!(read > 500 && refused > 500, "{read} read, {refused} refused");
}

/// Counts are read as they are written, one byte at a time as well as all at once.
#[test]
fn slow_sources_give_the_same() {
    struct Slow<'a>(&'a [u8]);
    impl Read for Slow<'_> {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let count = out.len().min(self.0.len()).min(300);
            out[..count].copy_from_slice(&self.0[..count]);
            self.0 = &self.0[count..];
            Ok(count)
        }
    }
    let text: String = (0..500).map(|i| format!("{},0,{}\n", i, i % 7 + 1)).collect();
    let text = format!("iteration,expert,count\n{text}");
    let mut importer = Importer::new("t", ImportOptions::default());
    importer.add("t.csv", &mut Slow(text.as_bytes())).unwrap();
    assert_eq!(importer.finish().unwrap().counts(), one("t.csv", &text).counts());
}
