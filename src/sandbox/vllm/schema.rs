//! An instance of a JSON schema: what a model says whose output is constrained.
//!
//! Invariants
//! 1. The instance obeys `type` (one or several), `properties`, `required`, `additionalProperties`, `minProperties`, `enum`, `const`,
//!    `items`, `prefixItems`, `minItems`, the bounds of numbers, `multipleOf`, `minLength`, `maxLength`, `$ref` within the schema,
//!    `allOf`, and the first branch of `anyOf` and `oneOf` that has an instance.
//! 2. It ends: a `$ref` is not followed within itself, and depth and size are bounded. What is behind the bound is left out where
//!    the schema allows it.
//!
//! Not obeyed: `pattern`, `uniqueItems`, `not`, `if`, `patternProperties`, `dependentRequired`, `oneOf` that a second branch fits too.

use serde_json::{Map, Value, json};

/// Schemas that nest deeper have no instance here; each level is a stack frame.
const DEPTH_MAX: usize = 64;
/// Values of one instance: references make a short schema's instance as large as they like.
const VALUES_MAX: usize = 10_000;
/// Characters that are added to a text for `minLength`.
const PADDING_CHARS_MAX: usize = 64 * 1024;
/// Texts of the formats that are known.
const FORMATS: [(&str, &str); 9] = [
    ("date", "2025-01-31"),
    ("date-time", "2025-01-31T12:00:00Z"),
    ("time", "12:00:00Z"),
    ("email", "nobody@example.com"),
    ("hostname", "example.com"),
    ("ipv4", "192.0.2.1"),
    ("ipv6", "2001:db8::1"),
    ("uri", "https://example.com/"),
    ("uuid", "00000000-0000-4000-8000-000000000000"),
];

/// An instance with this text in its strings; null for a schema without one.
pub(super) fn instance(schema: &Value, text: &str) -> Value {
    let mut maker = Maker {
        root: schema,
        text,
        references: Vec::new(),
        depth: 0,
        values_left: VALUES_MAX,
    };
    maker.make(schema).unwrap_or(Value::Null)
}

struct Maker<'a> {
    root: &'a Value,
    text: &'a str,
    /// The references that are being followed.
    references: Vec<String>,
    depth: usize,
    values_left: usize,
}

impl Maker<'_> {
    /// `None` when there is no instance within the bounds.
    fn make(&mut self, schema: &Value) -> Option<Value> {
        if self.depth >= DEPTH_MAX || *schema == Value::Bool(false) {
            return None;
        }
        self.values_left = self.values_left.checked_sub(1)?;
        self.depth += 1;
        let made = self.resolve(schema);
        self.depth -= 1;
        made
    }

    /// Follows what stands for another schema, then makes a value.
    fn resolve(&mut self, schema: &Value) -> Option<Value> {
        if schema.get("$ref").is_some() || schema.get("allOf").is_some() {
            let open = self.references.len();
            let made = self.joined(schema).and_then(|whole| self.make(&whole));
            self.references.truncate(open);
            return made;
        }
        for name in ["anyOf", "oneOf"] {
            if let Some(branches) = schema.get(name).and_then(Value::as_array) {
                let rest = without(schema, name);
                return branches
                    .iter()
                    .find_map(|branch| self.make(&merged(branch, &rest)));
            }
        }
        self.value(schema)
    }

    /// The schema with the keywords of what it refers to; the references stay open for as long as its value is being made.
    fn joined(&mut self, schema: &Value) -> Option<Value> {
        let mut whole = schema.clone();
        while let Some(reference) = whole.get("$ref").and_then(Value::as_str) {
            if self.references.iter().any(|open| open == reference) {
                return None;
            }
            let target = self.root.pointer(reference.strip_prefix('#')?)?;
            self.references.push(reference.to_owned());
            whole = merged(target, &without(&whole, "$ref"));
        }
        let parts = whole.get("allOf").and_then(Value::as_array).cloned();
        let mut whole = without(&whole, "allOf");
        for part in parts.into_iter().flatten() {
            whole = merged(&self.joined(&part)?, &whole);
        }
        Some(whole)
    }

    fn value(&mut self, schema: &Value) -> Option<Value> {
        if let Some(constant) = schema.get("const") {
            return Some(constant.clone());
        }
        if let Some(choices) = schema.get("enum").and_then(Value::as_array) {
            let fits = |choice: &&Value| {
                kinds(schema).is_none_or(|kinds| kinds.iter().any(|kind| is(choice, kind)))
            };
            return choices.iter().find(fits).cloned();
        }
        match kinds(schema) {
            Some(kinds) => kinds.into_iter().find_map(|kind| self.of(kind, schema)),
            None => self.of(self.likely_kind(schema), schema),
        }
    }

    /// The kind that a schema without `type` is about.
    fn likely_kind(&self, schema: &Value) -> &'static str {
        const SIGNS: [(&str, &[&str]); 4] = [
            ("object", &["properties", "required", "minProperties"]),
            ("array", &["items", "prefixItems", "minItems"]),
            (
                "number",
                &[
                    "minimum",
                    "maximum",
                    "exclusiveMinimum",
                    "exclusiveMaximum",
                    "multipleOf",
                ],
            ),
            ("string", &["minLength", "maxLength", "format"]),
        ];
        let has = |signs: &[&str]| signs.iter().any(|sign| schema.get(sign).is_some());
        let without_sign = if self.depth == 1 { "object" } else { "string" };
        SIGNS
            .iter()
            .find(|(_, signs)| has(signs))
            .map_or(without_sign, |(kind, _)| *kind)
    }

    fn of(&mut self, kind: &str, schema: &Value) -> Option<Value> {
        match kind {
            "string" => Some(json!(string(schema, self.text))),
            "integer" => number(schema, true),
            "number" => number(schema, false),
            "boolean" => Some(json!(false)),
            "null" => Some(Value::Null),
            "array" => self.array(schema),
            "object" => self.object(schema),
            _ => None,
        }
    }

    fn array(&mut self, schema: &Value) -> Option<Value> {
        let least = schema.get("minItems").and_then(Value::as_u64).unwrap_or(0);
        let first = schema.get("prefixItems").and_then(Value::as_array);
        let mut first = first.into_iter().flatten();
        let others = schema.get("items").unwrap_or(&Value::Null);
        // Ends with the values that are left at the latest.
        (0..least)
            .map(|_| self.make(first.next().unwrap_or(others)))
            .collect()
    }

    /// The properties that are required (all, when none is), and as many others as it needs.
    fn object(&mut self, schema: &Value) -> Option<Value> {
        let empty = Map::new();
        let properties = schema
            .get("properties")
            .and_then(Value::as_object)
            .unwrap_or(&empty);
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let least = schema
            .get("minProperties")
            .and_then(Value::as_u64)
            .map_or(0, |least| usize::try_from(least).unwrap_or(usize::MAX));
        let additional = schema.get("additionalProperties").unwrap_or(&Value::Null);
        let mut object = Map::new();
        for name in &required {
            let property = properties.get(*name).unwrap_or(additional);
            object.insert((*name).to_owned(), self.make(property)?);
        }
        for (name, property) in properties {
            if object.contains_key(name) || (!required.is_empty() && object.len() >= least) {
                continue;
            }
            if let Some(value) = self.make(property) {
                object.insert(name.clone(), value);
            }
        }
        for number in 1..=least {
            if object.len() < least {
                object.insert(format!("property_{number}"), self.make(additional)?);
            }
        }
        Some(object.into())
    }
}

/// The types that a schema allows; `None` when it does not say.
fn kinds(schema: &Value) -> Option<Vec<&str>> {
    match schema.get("type")? {
        Value::String(kind) => Some(vec![kind]),
        Value::Array(kinds) => Some(kinds.iter().filter_map(Value::as_str).collect()),
        _ => None,
    }
}

fn is(value: &Value, kind: &str) -> bool {
    match kind {
        "string" => value.is_string(),
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}

fn without(schema: &Value, name: &str) -> Value {
    let mut schema = schema.clone();
    if let Some(schema) = schema.as_object_mut() {
        schema.remove(name);
    }
    schema
}

/// A schema that obeys both, as far as their keywords are unlike: properties and requirements join, of others `over` wins.
fn merged(under: &Value, over: &Value) -> Value {
    let (Some(under), Some(over)) = (under.as_object(), over.as_object()) else {
        // `true` and `false` have no keywords.
        return if *under == Value::Bool(false) {
            under.clone()
        } else {
            over.clone()
        };
    };
    let mut whole = under.clone();
    for (name, value) in over {
        let joined = match (name.as_str(), whole.get(name), value) {
            (
                "properties" | "$defs" | "definitions",
                Some(Value::Object(one)),
                Value::Object(two),
            ) => one.clone().into_iter().chain(two.clone()).collect(),
            ("required", Some(Value::Array(one)), Value::Array(two)) => {
                one.iter().chain(two).cloned().collect()
            }
            _ => value.clone(),
        };
        whole.insert(name.clone(), joined);
    }
    whole.into()
}

/// A length in characters that a schema names.
fn length(schema: &Value, name: &str) -> Option<usize> {
    let length = schema.get(name)?.as_u64()?;
    Some(usize::try_from(length).unwrap_or(usize::MAX))
}

fn string(schema: &Value, text: &str) -> String {
    let format = schema.get("format").and_then(Value::as_str);
    if let Some((_, text)) = FORMATS.iter().find(|(name, _)| Some(*name) == format) {
        return (*text).to_owned();
    }
    let longest = length(schema, "maxLength").unwrap_or(usize::MAX);
    let mut text: String = text.chars().take(longest).collect();
    let lacking = length(schema, "minLength")
        .unwrap_or(0)
        .saturating_sub(text.chars().count());
    text.push_str(&".".repeat(lacking.min(PADDING_CHARS_MAX)));
    text
}

/// 0 where it is allowed, else a number near a bound; `None` when no such number is allowed.
fn number(schema: &Value, whole: bool) -> Option<Value> {
    let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
    let (least, above) = (bound("minimum"), bound("exclusiveMinimum"));
    let (most, below) = (bound("maximum"), bound("exclusiveMaximum"));
    let step = bound("multipleOf").filter(|step| *step > 0.0);
    let allowed = |number: &f64| {
        least.is_none_or(|least| *number >= least)
            && above.is_none_or(|above| *number > above)
            && most.is_none_or(|most| *number <= most)
            && below.is_none_or(|below| *number < below)
            && (!whole || number.fract() == 0.0)
            && step.is_none_or(|step| (number / step).fract() == 0.0)
    };
    let low = least.into_iter().chain(above).reduce(f64::max);
    let high = most.into_iter().chain(below).reduce(f64::min);
    let between = low.zip(high).map(|(low, high)| low / 2.0 + high / 2.0);
    let unit = step.unwrap_or(1.0);
    let near = [
        low,
        low.map(|low| (low / unit).ceil() * unit),
        low.map(|low| ((low / unit).floor() + 1.0) * unit),
        high,
        high.map(|high| (high / unit).floor() * unit),
        high.map(|high| ((high / unit).ceil() - 1.0) * unit),
        between,
    ];
    let number = std::iter::once(0.0)
        .chain(near.into_iter().flatten())
        .find(allowed)?;
    let as_whole = || format!("{number:.0}").parse::<i64>().ok();
    match as_whole().filter(|_| number.fract() == 0.0) {
        Some(number) => Some(json!(number)),
        None => Some(json!(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "Sales rose 4% in 2025.";

    /// Invariant 1, judged by a validator.
    fn conforming(schema: &Value) -> Value {
        let instance = instance(schema, TEXT);
        let verdict = jsonschema::validate(schema, &instance);
        assert!(verdict.is_ok(), "{schema}: {instance}: {verdict:?}");
        instance
    }

    #[test]
    fn instances_obey_each_keyword() {
        let schemas = [
            json!({}),
            json!({"type": ["string", "null"], "maxLength": 5}),
            json!({"type": "string", "minLength": 300}),
            json!({"type": "string", "minLength": 3, "maxLength": 3}),
            json!({"type": "integer", "minimum": 1.5}),
            json!({"type": "integer", "exclusiveMinimum": 3, "maximum": 4}),
            json!({"type": "integer", "maximum": -7, "multipleOf": 5}),
            json!({"type": "integer", "minimum": 1, "multipleOf": 7}),
            json!({"type": "integer", "exclusiveMaximum": 0}),
            json!({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5}),
            json!({"type": "number", "minimum": 0.25, "maximum": 0.25}),
            json!({"minimum": 3}),
            json!({"type": "boolean"}),
            json!({"enum": [null, "x"], "type": "string"}),
            json!({"const": {"a": [1, 2]}}),
            json!({"type": "array", "items": {"type": "integer", "minimum": 2}, "minItems": 3}),
            json!({"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "string"}, "minItems": 2}),
            json!({"items": {"type": "string"}}),
            json!({"type": "object", "required": ["a", "free"], "properties": {"a": {"type": "number"}, "b": {}}}),
            json!({"type": "object", "required": ["a"], "additionalProperties": {"type": "integer", "minimum": 9}}),
            json!({"type": "object", "minProperties": 3, "required": ["a"], "properties": {"a": {}, "b": {"type": "null"}}}),
            json!({"anyOf": [{"type": "integer"}, {"type": "string"}], "minimum": 5}),
            json!({"oneOf": [false, {"type": "string"}, {"type": "null"}]}),
            json!({"anyOf": [{"required": ["b"]}, {"required": ["c"]}], "type": "object",
                "properties": {"a": {"type": "string"}, "b": {"type": "integer"}}, "required": ["a"]}),
            json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"type": "integer", "minimum": 4}}}),
            json!({"$ref": "#/definitions/a", "$schema": "http://json-schema.org/draft-07/schema#",
                "definitions": {"a": {"type": "object", "required": ["x"], "properties": {"x": {"enum": ["y"]}}}}}),
            json!({"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "required": ["c"], "$defs": {
                "a": {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}},
                "b": {"type": "object", "required": ["b"], "properties": {"b": {"type": "boolean"}}}}}),
            json!({"type": "string", "format": "date"}),
        ];
        for schema in schemas {
            conforming(&schema);
        }
    }

    #[test]
    fn the_first_branch_and_the_first_choice_are_taken() {
        let schema = json!({"type": "object", "required": ["tone", "note", "score"], "properties": {
            "tone": {"enum": ["good", "bad"]},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "score": {"type": "integer", "minimum": 1, "maximum": 5},
            "left_out": {"type": "string"}}});
        let expected = json!({"tone": "good", "note": TEXT, "score": 1});
        assert_eq!(conforming(&schema), expected);
    }

    /// Invariant 2: a tree ends at its leaves, by a branch that does not refer to it or by leaving a property out.
    #[test]
    fn a_schema_that_refers_to_itself_ends() {
        let tree = json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": ["left", "right"], "properties": {
            "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            "right": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}}}});
        assert_eq!(conforming(&tree), json!({"left": null, "right": null}));
        let list = json!({"type": "object", "properties": {"next": {"$ref": "#"}, "value": {"type": "integer"}}});
        assert_eq!(conforming(&list), json!({"value": 0, "next": {"value": 0}}));
        let endless = json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "required": ["a"],
            "properties": {"a": {"$ref": "#/$defs/a"}}}}});
        assert_eq!(instance(&endless, TEXT), Value::Null);
    }

    /// Invariant 2: each definition holds the next one ten times; thirty of them would be 10^30 values.
    #[test]
    fn a_short_schema_of_a_huge_instance_ends() {
        let mut definitions = Map::new();
        for number in 0..30 {
            let next = json!({"$ref": format!("#/$defs/d{}", number + 1)});
            let definition = json!({"type": "array", "minItems": 10, "items": next});
            definitions.insert(format!("d{number}"), definition);
        }
        definitions.insert("d30".to_owned(), json!({"type": "null"}));
        let schema = json!({"$ref": "#/$defs/d0", "$defs": definitions});
        assert_eq!(instance(&schema, TEXT), Value::Null);
        let many = json!({"type": "array", "minItems": u64::MAX});
        assert_eq!(instance(&many, TEXT), Value::Null);
    }

    fn any_schema() -> impl Strategy<Value = Value> {
        let bounds = (-50_i64..50, 0_i64..20);
        let leaf = prop_oneof![
            Just(json!({"type": "boolean"})),
            Just(json!({"type": ["null", "string"]})),
            (0_usize..40, 0_usize..40).prop_map(
                |(least, more)| json!({"type": "string", "minLength": least, "maxLength": least + more})
            ),
            bounds.clone().prop_map(
                |(least, more)| json!({"type": "integer", "minimum": least, "maximum": least + more})
            ),
            bounds.prop_map(|(least, more)| json!({"type": "number", "exclusiveMinimum": least,
                "exclusiveMaximum": least + more + 1})),
            proptest::collection::vec(".{0,4}", 1..4).prop_map(|choices| json!({ "enum": choices })),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            let properties = proptest::collection::btree_map("[a-d]", inner.clone(), 0..4);
            prop_oneof![
                (inner.clone(), 0_usize..4).prop_map(
                    |(items, least)| json!({"type": "array", "items": items, "minItems": least})
                ),
                proptest::collection::vec(inner, 1..3).prop_map(|branches| json!({ "anyOf": branches })),
                (properties, any::<bool>()).prop_map(|(properties, all)| {
                    let required: Vec<_> = properties.keys().step_by(if all { 1 } else { 2 }).cloned().collect();
                    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
                }),
            ]
        })
    }

    proptest! {
        /// Invariant 1, for schemas of every ordinary kind within each other.
        #[test]
        fn every_ordinary_schema_has_a_conforming_instance(schema in any_schema()) {
            conforming(&schema);
        }
    }
}
