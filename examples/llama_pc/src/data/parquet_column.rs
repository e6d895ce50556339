//! The column of a Parquet schema that a dotted path means.
//!
//! Lists and maps have levels of their own in the schema (`messages.list.element.content`); a path leaves them out
//! (`messages.content`), whatever the writer called them.

use parquet::basic::{ConvertedType, LogicalType, Type as Physical};
use parquet::schema::types::{SchemaDescriptor, Type};

use crate::terminal::format::{clipped, listed};

/// The index of the leaf column that `path` means; the error says what was found.
pub fn column(schema: &SchemaDescriptor, path: &str) -> Result<usize, String> {
    let mut leaves = Vec::new();
    members(schema.root_schema(), "", &mut leaves);
    let full = |index: usize| schema.column(index).path().string();
    let by_full_path = (0..leaves.len()).find(|index| full(*index) == path);
    let shown = clipped(path, 40);
    let Some(index) = by_full_path.or_else(|| leaves.iter().position(|leaf| leaf == path)) else {
        let is_below = |leaf: &&String| leaf.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
        let below: Vec<&String> = leaves.iter().filter(is_below).collect();
        return Err(match below[..] {
            [] => format!("found columns {}, expected \"{shown}\"", clipped(&listed(&leaves), 80)),
            _ => format!("found a group \"{shown}\", expected a column in it: {}", clipped(&listed(&below), 80)),
        });
    };
    let leaf = schema.column(index);
    // Older writers have the converted type only.
    let is_string = matches!(
        (leaf.logical_type_ref(), leaf.converted_type()),
        (Some(LogicalType::String), _) | (None, ConvertedType::NONE | ConvertedType::UTF8)
    );
    let is_text = is_string && leaf.physical_type() == Physical::BYTE_ARRAY;
    if is_text { Ok(index) } else { Err(format!("found another kind of column \"{shown}\", expected text")) }
}

/// Adds the paths of the leaves below a field to `leaves`, in the schema's order.
fn add(field: &Type, path: &str, leaves: &mut Vec<String>) {
    if field.is_primitive() {
        leaves.push(path.to_owned());
        return;
    }
    let info = field.get_basic_info();
    let kind = (info.logical_type_ref(), info.converted_type());
    match (kind, field.get_fields()) {
        ((Some(LogicalType::List), _) | (_, ConvertedType::LIST), [repeated]) => {
            // Old writers repeat the item itself; the format's rules tell them by these names.
            let of_old = |name: &str| name == "array" || name.strip_suffix("_tuple") == Some(field.name());
            match repeated {
                repeated if repeated.is_primitive() || of_old(repeated.name()) => add(repeated, path, leaves),
                repeated => match repeated.get_fields() {
                    [item] => add(item, path, leaves),
                    _ => add(repeated, path, leaves),
                },
            }
        }
        ((Some(LogicalType::Map), _) | (_, ConvertedType::MAP | ConvertedType::MAP_KEY_VALUE), [entries])
            if !entries.is_primitive() =>
        {
            members(entries, path, leaves);
        }
        _ => members(field, path, leaves),
    }
}

fn members(group: &Type, path: &str, leaves: &mut Vec<String>) {
    for field in group.get_fields() {
        let path = if path.is_empty() { field.name().to_owned() } else { format!("{path}.{}", field.name()) };
        add(field, &path, leaves);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::schema::parser::parse_message_type;

    use super::*;

    fn schema() -> SchemaDescriptor {
        let schema = "message m {
            required int64 id;
            optional binary text (UTF8);
            optional group messages (LIST) { repeated group list { optional group element {
                optional binary role (UTF8); optional binary content (UTF8); } } }
            optional group tags (LIST) { repeated group bag { optional binary array_element (UTF8); } }
            optional group old (LIST) { repeated binary array (UTF8); }
            optional group older (LIST) { repeated group array { required binary word (UTF8); } }
            optional group attributes (MAP) { repeated group key_value { required binary key (UTF8); optional binary value (UTF8); } }
            optional group meta { optional binary url (UTF8); repeated binary alias; optional binary json (JSON); }
        }";
        SchemaDescriptor::new(Arc::new(parse_message_type(schema).expect("a schema")))
    }

    #[test]
    fn paths_leave_the_levels_of_lists_out() {
        let schema = schema();
        for (path, full) in [
            ("text", "text"),
            ("messages.content", "messages.list.element.content"),
            ("messages.list.element.role", "messages.list.element.role"),
            ("tags", "tags.bag.array_element"),
            ("old", "old.array"),
            ("older.word", "older.array.word"),
            ("attributes.value", "attributes.key_value.value"),
            ("meta.url", "meta.url"),
            ("meta.alias", "meta.alias"),
        ] {
            let index = column(&schema, path).expect("a text column");
            assert_eq!(schema.column(index).path().string(), full);
        }
    }

    #[test]
    fn what_a_path_does_not_mean_is_said() {
        let schema = schema();
        let error = |path: &str| column(&schema, path).expect_err("no text column");
        assert_eq!(error("messages"), "found a group \"messages\", expected a column in it: messages.role, messages.content");
        assert_eq!(error("id"), "found another kind of column \"id\", expected text");
        assert_eq!(error("meta.json"), "found another kind of column \"meta.json\", expected text");
        let missing = error(&"body".repeat(99));
        assert!(missing.starts_with("found columns id, text, messages.role, messages.content, tags and 7 more"), "{missing}");
        assert!(missing.chars().count() < 250, "{missing}");
    }

    #[test]
    fn the_older_annotation_tells_text_too() {
        use ConvertedType::{BSON, DECIMAL, JSON, NONE, UTF8};
        for (converted, is_text) in [(NONE, true), (UTF8, true), (JSON, false), (BSON, false), (DECIMAL, false)] {
            let leaf = Type::primitive_type_builder("c", Physical::BYTE_ARRAY).with_converted_type(converted);
            let leaf = leaf.with_precision(9).with_scale(2).build().expect("a column");
            let root = Type::group_type_builder("m").with_fields(vec![Arc::new(leaf)]).build().expect("a schema");
            assert_eq!(column(&SchemaDescriptor::new(Arc::new(root)), "c").is_ok(), is_text, "{converted:?}");
        }
    }
}
