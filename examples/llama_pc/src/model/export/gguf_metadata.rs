//! The metadata of a GGUF file: keys with typed values.

/// A value of the metadata.
pub enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Floats(Vec<f32>),
    Integers(Vec<i32>),
}

/// Keys with their values, in the order of the file.
pub type Metadata = Vec<(&'static str, Value)>;

/// The same keys, owned.
pub fn named(metadata: Metadata) -> Vec<(String, Value)> {
    metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// A string: its length and its UTF-8.
pub fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The type's number, then the value; an array starts with the type and count of its elements.
pub fn put_value(out: &mut Vec<u8>, value: &Value) {
    const ARRAY: u32 = 9;
    let mut array = |kind: u32, count: usize| {
        [ARRAY, kind].iter().for_each(|number| out.extend(number.to_le_bytes()));
        out.extend((count as u64).to_le_bytes());
    };
    match value {
        Value::Texts(list) => {
            array(8, list.len());
            list.iter().for_each(|text| put_text(out, text));
        }
        Value::Floats(list) => {
            array(6, list.len());
            list.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
        Value::Integers(list) => {
            array(5, list.len());
            list.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
        Value::U32(number) => {
            out.extend(4u32.to_le_bytes());
            out.extend(number.to_le_bytes());
        }
        Value::F32(number) => {
            out.extend(6u32.to_le_bytes());
            out.extend(number.to_le_bytes());
        }
        Value::Bool(flag) => {
            out.extend(7u32.to_le_bytes());
            out.push(u8::from(*flag));
        }
        Value::Text(text) => {
            out.extend(8u32.to_le_bytes());
            put_text(out, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_bytes_of_the_format() {
        let bytes = |value: Value| {
            let mut out = Vec::new();
            put_value(&mut out, &value);
            out
        };
        assert_eq!(bytes(Value::U32(258)), [4, 0, 0, 0, 2, 1, 0, 0]);
        assert_eq!(bytes(Value::Bool(true)), [7, 0, 0, 0, 1]);
        assert_eq!(bytes(Value::Text("ab".into())), [8, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, b'a', b'b']);
        assert_eq!(bytes(Value::Integers(vec![-1])), [9, 0, 0, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255]);
    }
}
