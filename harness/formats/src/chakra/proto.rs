//! The two messages of an execution trace (`chakra/schema/protobuf/et_def.proto`, package `ChakraProtoMsg`, proto3), written byte by
//! byte: a file is a `GlobalMetadata` and then `Node`s, each behind its length as a varint.

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeType {
    Compute = 4,
    Send = 5,
    Receive = 6,
    Collective = 7,
}

/// A value of an attribute, of the type that readers of either version expect.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Bool(bool),
    Int32(i32),
    Int64(i64),
    Text(String),
}

/// A node and what it waits for.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    pub id: u64,
    pub name: String,
    pub kind: NodeType,
    pub depends: Vec<u64>,
    pub start_microseconds: u64,
    pub microseconds: u64,
    pub attributes: Vec<(&'static str, Value)>,
}

/// A file's bytes.
pub fn file(version: &str, metadata: &[(&'static str, Value)], nodes: &[Node]) -> Vec<u8> {
    let mut first = Vec::new();
    bytes(&mut first, 1, version.as_bytes());
    for attribute in metadata {
        bytes(&mut first, 2, &of_attribute(attribute));
    }
    let mut file = Vec::new();
    for message in std::iter::once(first).chain(nodes.iter().map(of_node)) {
        varint(&mut file, message.len() as u64);
        file.extend(message);
    }
    file
}

fn of_node(node: &Node) -> Vec<u8> {
    let mut message = Vec::new();
    number(&mut message, 1, node.id);
    bytes(&mut message, 2, node.name.as_bytes());
    number(&mut message, 3, node.kind as u64);
    if !node.depends.is_empty() {
        let mut packed = Vec::new();
        node.depends.iter().for_each(|&id| varint(&mut packed, id));
        bytes(&mut message, 5, &packed);
    }
    number(&mut message, 6, node.start_microseconds);
    number(&mut message, 7, node.microseconds);
    for attribute in &node.attributes {
        bytes(&mut message, 10, &of_attribute(attribute));
    }
    message
}

/// A value is one of several: it is written also where it is the default of its type.
fn of_attribute((name, value): &(&str, Value)) -> Vec<u8> {
    let mut message = Vec::new();
    bytes(&mut message, 1, name.as_bytes());
    match value {
        // Negative numbers are written as of 64 bits.
        Value::Int32(value) => field(&mut message, 7, i64::from(*value) as u64),
        Value::Int64(value) => field(&mut message, 9, *value as u64),
        Value::Bool(value) => field(&mut message, 27, u64::from(*value)),
        Value::Text(text) => bytes(&mut message, 29, text.as_bytes()),
    }
    message
}

/// A number that is left out where it is 0, as proto3 does.
fn number(message: &mut Vec<u8>, tag: u64, value: u64) {
    if value != 0 {
        field(message, tag, value);
    }
}

fn field(message: &mut Vec<u8>, tag: u64, value: u64) {
    varint(message, tag << 3);
    varint(message, value);
}

fn bytes(message: &mut Vec<u8>, tag: u64, value: &[u8]) {
    varint(message, (tag << 3) | 2);
    varint(message, value.len() as u64);
    message.extend(value);
}

/// Seven bits a byte, the lowest first.
fn varint(message: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}
