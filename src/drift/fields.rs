//! The enumerated fields of structured answers: those whose schema lists their values, or which are true or false. Pure.

use serde_json::Value;

/// Fields that are watched at most, each one a chance of a false alarm.
const FIELDS_MAX: usize = 32;
/// Values of one that are told apart at most.
const VALUES_MAX: usize = 32;
/// Objects within objects that are looked into.
const DEPTH_MAX: usize = 5;

/// A field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    /// Dotted path.
    pub name: String,
    /// Its values as they are shown; the last two stand for other values and for none.
    pub values: Vec<String>,
    path: Vec<String>,
    known: Vec<Value>,
}

/// The fields of a schema.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fields(Vec<Field>);

impl Fields {
    /// Finds them in a JSON Schema: `properties` with `enum` or of type `boolean`, also in objects within and behind a `$ref` into the schema.
    /// Items of arrays are passed over.
    #[must_use]
    pub fn of_schema(schema: &Value) -> Self {
        let mut fields = Vec::new();
        collect(schema, schema, &mut Vec::new(), &mut fields);
        fields.truncate(FIELDS_MAX);
        Self(fields)
    }

    /// They.
    #[must_use]
    pub fn as_slice(&self) -> &[Field] {
        &self.0
    }

    /// The number of each one's value in an answer.
    #[must_use]
    pub fn read(&self, data: &Value) -> Vec<u8> {
        self.0.iter().map(|field| field.read(data)).collect()
    }
}

impl Field {
    fn read(&self, data: &Value) -> u8 {
        let mut path = self.path.iter();
        let found = path.try_fold(data, |value, name| value.get(name));
        let number = match found {
            None => self.known.len() + 1,
            Some(value) => {
                let known = self.known.iter().position(|known| known == value);
                known.unwrap_or(self.known.len())
            }
        };
        u8::try_from(number).unwrap_or(u8::MAX)
    }
}

fn collect(root: &Value, schema: &Value, path: &mut Vec<String>, fields: &mut Vec<Field>) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return;
    };
    for (name, property) in properties {
        if fields.len() >= FIELDS_MAX {
            return;
        }
        let property = resolved(root, property);
        path.push(name.clone());
        if let Some(known) = values(property) {
            let shown = known.iter().map(|value| match value {
                Value::String(text) => text.clone(),
                value => value.to_string(),
            });
            let values = shown.chain(["(other)".to_owned(), "(none)".to_owned()]);
            fields.push(Field {
                name: path.join("."),
                values: values.collect(),
                path: path.clone(),
                known,
            });
        } else if path.len() < DEPTH_MAX {
            collect(root, property, path, fields);
        }
        path.pop();
    }
}

/// What a `$ref` into the schema stands for; one step, as it is written.
fn resolved<'a>(root: &'a Value, property: &'a Value) -> &'a Value {
    let target = property.get("$ref").and_then(Value::as_str);
    let target = target.and_then(|target| target.strip_prefix('#'));
    target
        .and_then(|pointer| root.pointer(pointer))
        .unwrap_or(property)
}

fn values(property: &Value) -> Option<Vec<Value>> {
    if let Some(values) = property.get("enum").and_then(Value::as_array) {
        return Some(values.iter().take(VALUES_MAX).cloned().collect());
    }
    let kind = property.get("type")?;
    let is_boolean = |kind: &Value| kind == "boolean";
    let is_boolean = is_boolean(kind) || kind.as_array()?.iter().any(is_boolean);
    is_boolean.then(|| vec![Value::Bool(true), Value::Bool(false)])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields() -> Fields {
        Fields::of_schema(&json!({
            "type": "object",
            "properties": {
                "sentiment": {"enum": ["positive", "negative", null]},
                "audited": {"type": "boolean"},
                "restated": {"type": ["boolean", "null"]},
                "summary": {"type": "string"},
                "figures": {"type": "array", "items": {"properties": {"unit": {"enum": ["USD"]}}}},
                "issuer": {"type": "object", "properties": {"size": {"$ref": "#/$defs/size"}}}
            },
            "$defs": {"size": {"enum": [1, 2]}}
        }))
    }

    #[test]
    fn enumerations_and_truth_values_are_found_where_they_are() {
        let found = fields();
        let names: Vec<_> = found.as_slice().iter().map(|field| &field.name).collect();
        // serde_json keeps an object's keys sorted.
        assert_eq!(names, ["audited", "issuer.size", "restated", "sentiment"]);
        assert_eq!(
            found.as_slice()[3].values,
            ["positive", "negative", "null", "(other)", "(none)"]
        );
        let builtin = include_str!("../llm/schema/financial.json");
        let builtin = Fields::of_schema(&serde_json::from_str(builtin).unwrap());
        let names: Vec<_> = builtin.as_slice().iter().map(|field| &field.name).collect();
        assert_eq!(names, ["document_type", "sentiment"]);
    }

    #[test]
    fn values_have_numbers_and_so_have_others_and_none() {
        let read = |data: Value| fields().read(&data);
        let data = json!({"sentiment": "negative", "audited": false, "issuer": {"size": 2}});
        assert_eq!(read(data), [1, 1, 3, 1]);
        assert_eq!(
            read(json!({"sentiment": "odd", "audited": true, "issuer": 5})),
            [0, 3, 3, 3]
        );
    }

    #[test]
    fn a_schema_of_any_size_is_bounded() {
        let many: serde_json::Map<_, _> = (0..100)
            .map(|n| {
                (
                    format!("f{n}"),
                    json!({"enum": (0..500).collect::<Vec<_>>()}),
                )
            })
            .collect();
        let found = Fields::of_schema(&json!({"properties": many}));
        assert_eq!(found.as_slice().len(), FIELDS_MAX);
        assert_eq!(found.as_slice()[0].values.len(), VALUES_MAX + 2);
        // One that refers to itself ends.
        let endless = json!({"properties": {"a": {"$ref": "#"}}});
        assert_eq!(Fields::of_schema(&endless), Fields::default());
    }
}
