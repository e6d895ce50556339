//! Tests of reading a text out of a JSON object.

use proptest::prelude::*;

use super::*;

fn found(json: &str, path: &str) -> Found {
    text_at(json, path).expect("an object").found
}

fn text(json: &str, path: &str) -> String {
    match found(json, path) {
        Found::Text(text) => text,
        other => panic!("{json}: {other:?}"),
    }
}

#[test]
fn a_path_leads_through_objects_and_lists() {
    let json =
        r#" {"a": 1, "m": [{"r": "u", "c": "one"}, {"c": null}, {"r": "x"}, {"c": ["two", "three"]}], "o": {"p": {"q": "x"}}} "#;
    assert_eq!(text(json, "m.c"), "one\ntwo\nthree");
    assert!(text_at(json, "m.c").expect("an object").joined);
    assert_eq!(text(json, "o.p.q"), "x");
    assert!(!text_at(json, "o.p.q").expect("an object").joined);
    assert_eq!(found(json, "o.p"), Found::Other("an object"));
    assert_eq!(found(json, "a"), Found::Other("a number"));
    for path in ["m.d", "o.q", "a.b", "b", "", "."] {
        assert_eq!(found(json, path), Found::Missing, "{path}");
    }
    assert_eq!(fields(json), ["a", "m", "o"]);
}

#[test]
fn null_and_empty_lists_have_no_text() {
    for json in [r#"{"t": null}"#, r#"{"t": []}"#, r#"{"t": [null]}"#, r#"{"t": [[], null]}"#] {
        assert_eq!(found(json, "t"), Found::Null, "{json}");
    }
    assert_eq!(found(r#"{"t": []}"#, "t.x"), Found::Null);
    assert_eq!(found(r#"{"t": null}"#, "t.x"), Found::Null);
    assert_eq!(found(r#"{"t": [{}]}"#, "t.x"), Found::Missing);
    assert_eq!(text(r#"{"t": ""}"#, "t"), "");
    assert_eq!(found(r#"{"t": ["a", 3]}"#, "t"), Found::Other("a number"));
}

#[test]
fn the_last_of_equal_names_counts_and_names_with_dots_come_first() {
    assert_eq!(text(r#"{"t": "a", "t": "b"}"#, "t"), "b");
    assert_eq!(text(r#"{"a": {"b": "x"}, "a": {"b": "y"}}"#, "a.b"), "y");
    assert_eq!(text(r#"{"a.b": "dotted", "a": {"b": "x"}}"#, "a.b"), "dotted");
    assert_eq!(text(r#"{"a.b": {"c": "x"}}"#, "a.b.c"), "x");
    assert_eq!(text(r#"{"\u0074": "x"}"#, "t"), "x");
}

#[test]
fn half_a_surrogate_pair_becomes_a_replacement_character_and_is_counted() {
    for (json, expected, surrogates) in [
        (r#"{"t": "a\ud83d b"}"#, "a\u{fffd} b", 1),
        (r#"{"t": "\ud83d\ud83e\udd80"}"#, "\u{fffd}🦀", 1),
        (r#"{"t": "\udd80\ud83e"}"#, "\u{fffd}\u{fffd}", 2),
        (r#"{"t": "\ud83e\\udd80"}"#, "\u{fffd}\\udd80", 1),
        (r#"{"t": "\uD83E\uDD80\u0000"}"#, "🦀\0", 0),
        // Where nobody asked for the text, nothing is lost.
        (r#"{"t": "x", "u": "\ud83d"}"#, "x", 0),
    ] {
        let scan = text_at(json, "t").expect("an object");
        assert_eq!((scan.found, scan.surrogates), (Found::Text(expected.to_owned()), surrogates), "{json}");
    }
}

#[test]
fn what_python_writes_is_read() {
    let json = r#"{"s": NaN, "a": [Infinity, -Infinity, {"b": [NaN]}], "t": "x", "e": {}, "l": [[]]}"#;
    assert_eq!(text(json, "t"), "x");
    let deep = format!("{{\"d\": {}1{}, \"t\": \"x\"}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(text(&deep, "t"), "x");
    let wrong = text_at(&deep, "d").expect_err("too deep");
    assert!(wrong.found.starts_with("a text below 64 lists"), "{}", wrong.found);
}

#[test]
fn errors_say_where_and_what() {
    for (json, at, found) in [
        ("", 0, "the end, expected a JSON object"),
        ("[1]", 0, "a list, expected a JSON object"),
        (r#"{"t": "x"#, 8, "the end within a string, expected `\"`"),
        (r#"{"t": "x"} {"t": "y"}"#, 11, "'{', expected nothing behind the object"),
        (r#"{"t": "x"},"#, 10, "',', expected nothing behind the object"),
        (r#"{"t" "x"}"#, 5, "'\"', expected `:`"),
        (r#"{"t": "x",}"#, 10, "'}', expected a field's name"),
        (r#"{"t": [1,]}"#, 9, "']', expected a value"),
        (r#"{"a": [1,], "t": "x"}"#, 9, "']', expected a value"),
        (r#"{"a": 01}"#, 6, "'0', expected a value"),
        (r#"{"a": nan}"#, 6, "'n', expected a value"),
        (r#"{'t': "x"}"#, 1, "'\\'', expected a field's name"),
        ("{\"t\": \"a\tb\"}", 8, "'\\t', expected it escaped"),
        (r#"{"t": "\x"}"#, 7, "a backslash before something else, expected an escape such as `\\n`"),
        (r#"{"t": "\u12g4"}"#, 7, "`\\u` without four digits, expected them"),
        (r#"{"a": {"b": [1}}}"#, 14, "'}', expected `,` or `]`"),
    ] {
        assert_eq!(text_at(json, "t"), Err(Wrong { at, found: found.to_owned() }), "{json}");
    }
}

/// Any value of JSON.
fn value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<f64>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        any::<String>().prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(serde_json::Value::from),
            prop::collection::hash_map("[a-c.]{0,2}", inner, 0..5)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn whatever_else_a_row_holds_its_text_is_found(before in value(), after in value(), text in any::<String>(), pretty: bool) {
        let row = serde_json::json!({"a": before, "text": text, "z": {"text": after}});
        let json = if pretty { serde_json::to_string_pretty(&row) } else { serde_json::to_string(&row) }.expect("JSON");
        prop_assert_eq!(found(&json, "text"), Found::Text(text));
        prop_assert!(text_at(&json, "z.text").is_ok());
    }

    #[test]
    fn damage_never_panics(row in value(), at in any::<prop::sample::Index>(), put in "[\\[\\]{}\",:\\\\u0-9eENI.\\-]{0,2}") {
        let mut json = serde_json::json!({"text": row}).to_string();
        let mut at = at.index(json.len());
        while !json.is_char_boundary(at) {
            at -= 1;
        }
        json.truncate(if put.is_empty() { at } else { json.len() });
        json.insert_str(at, &put);
        for path in ["text", "text.a", "text.b.c"] {
            if let Err(wrong) = text_at(&json, path) {
                prop_assert!(json.get(wrong.at..).is_some() && wrong.found.len() < 100, "{}", wrong.found);
            }
        }
    }
}
