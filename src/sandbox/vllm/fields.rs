//! Reads the fields of a request body as vLLM's pydantic models do: lenient about `"0.5"` and `2.0`, strict about the rest, and
//! with the same words for what it refuses.
//!
//! Not the same: where vLLM lists one error per branch of a union (a message, `response_format`), only the first is listed here;
//! the position and wording of a JSON syntax error are only close.

use serde_json::{Map, Value};

use super::reply::Reply;

/// What is told of a value that is refused.
const INPUT_CHARS_MAX: usize = 200;

/// One refused field.
#[derive(Debug, Clone)]
pub(super) struct FieldError {
    kind: &'static str,
    location: String,
    message: String,
    input: String,
    /// Python source of the context, when there is one.
    context: Option<String>,
}

impl FieldError {
    pub(super) fn new(
        kind: &'static str,
        location: impl Into<String>,
        message: impl Into<String>,
        input: &Value,
    ) -> Self {
        Self {
            kind,
            location: location.into(),
            message: message.into(),
            input: shown(input),
            context: None,
        }
    }

    pub(super) fn context(mut self, context: impl Into<String>) -> Self {
        self.context = Some(context.into());
        self
    }
}

/// The 400 for refused fields.
pub(super) fn refuse(errors: &[FieldError]) -> Reply {
    let plural = if errors.len() == 1 { "" } else { "s" };
    let mut message = format!("{} validation error{plural}:", errors.len());
    for error in errors {
        let context = error
            .context
            .as_ref()
            .map_or_else(String::new, |context| format!(", 'ctx': {context}"));
        message.push_str(&format!(
            "\n  {{'type': {}, 'loc': {}, 'msg': {}, 'input': {}{context}}}",
            quoted(error.kind),
            quoted(&error.location),
            quoted(&error.message),
            quoted(&error.input),
        ));
    }
    let param = errors.first().map(|error| error.location.as_str());
    Reply::error(400, "Bad Request", &message, param)
}

/// Parses a body into its JSON object.
pub(super) fn object(body: &[u8]) -> Result<Map<String, Value>, Reply> {
    let missing = || {
        refuse(&[FieldError::new(
            "missing",
            "body",
            "Field required",
            &Value::Null,
        )])
    };
    let Ok(text) = std::str::from_utf8(body) else {
        return Err(Reply::detail(400, "There was an error parsing the body"));
    };
    if text.is_empty() {
        return Err(missing());
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(Value::Null) => Err(missing()),
        Ok(other) => Err(refuse(&[FieldError::new(
            "model_attributes_type",
            "body",
            "Input should be a valid dictionary or object to extract fields from",
            &other,
        )])),
        Err(error) => Err(invalid_json(text, &error)),
    }
}

fn invalid_json(text: &str, error: &serde_json::Error) -> Reply {
    let reason = error.to_string();
    if reason.contains("surrogate") || reason.contains("hex escape") {
        // Python reads a lone surrogate; the tokenizer then refuses it.
        return Reply::bad_request(
            "TextEncodeInput must be Union[TextInputSequence, Tuple[InputSequence, InputSequence]]",
        );
    }
    let line_start: usize = text
        .split_inclusive('\n')
        .take(error.line().saturating_sub(1))
        .map(str::len)
        .sum();
    let mut position = line_start + error.column().saturating_sub(1);
    if reason.starts_with("expected ident") {
        // Found inside a word: Python names the word's first letter.
        let before = text.get(..position).unwrap_or_default();
        position = before.trim_end_matches(char::is_alphabetic).len();
    }
    let words = if reason.starts_with("EOF while parsing a value") {
        // Python skips white space first, and knows that an object's comma wants a name.
        position = text.len();
        if text.trim_end().ends_with([',', '{']) {
            "Expecting property name enclosed in double quotes"
        } else {
            "Expecting value"
        }
    } else if reason.starts_with("trailing characters") {
        "Extra data"
    } else if reason.starts_with("EOF while parsing a string") {
        "Unterminated string starting at"
    } else if reason.starts_with("key must be a string")
        || reason.starts_with("EOF while parsing an object")
    {
        "Expecting property name enclosed in double quotes"
    } else if reason.starts_with("expected `,`") {
        "Expecting ',' delimiter"
    } else if reason.starts_with("expected `:`") {
        "Expecting ':' delimiter"
    } else {
        "Expecting value"
    };
    refuse(&[FieldError::new(
        "json_invalid",
        format!("body.{position}"),
        "JSON decode error",
        &Value::Object(Map::new()),
    )
    .context(format!("{{'error': {}}}", quoted(words)))])
}

/// Reads the fields of one object and gathers what is wrong, in the order in which they are asked for.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    object: &'a Map<String, Value>,
    pub(super) errors: Vec<FieldError>,
}

impl<'a> Fields<'a> {
    pub(super) const fn new(object: &'a Map<String, Value>) -> Self {
        Self {
            object,
            errors: Vec::new(),
        }
    }

    /// A field that is there and not null.
    pub(super) fn value(&self, name: &str) -> Option<&'a Value> {
        self.object.get(name).filter(|value| !value.is_null())
    }

    /// The whole object is shown for what it lacks.
    pub(super) fn missing(&mut self, name: &str) {
        self.errors.push(FieldError::new(
            "missing",
            format!("body.{name}"),
            "Field required",
            &Value::Object(self.object.clone()),
        ));
    }

    pub(super) fn refuse(&mut self, kind: &'static str, name: &str, message: &str, value: &Value) {
        self.errors.push(FieldError::new(
            kind,
            format!("body.{name}"),
            message,
            value,
        ));
    }

    pub(super) fn text(&mut self, name: &str) -> Option<&'a str> {
        let value = self.value(name)?;
        if value.as_str().is_none() {
            self.refuse("string_type", name, "Input should be a valid string", value);
        }
        value.as_str()
    }

    pub(super) fn float(&mut self, name: &str) -> Option<f64> {
        let value = self.value(name)?;
        match value {
            Value::Number(number) => number.as_f64(),
            Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
            Value::String(text) => {
                let number = text.trim().parse().ok();
                if number.is_none() {
                    self.refuse(
                        "float_parsing",
                        name,
                        "Input should be a valid number, unable to parse string as a number",
                        value,
                    );
                }
                number
            }
            _ => {
                self.refuse("float_type", name, "Input should be a valid number", value);
                None
            }
        }
    }

    pub(super) fn integer(&mut self, name: &str) -> Option<i64> {
        let value = self.value(name)?;
        let number = whole_number(value);
        if let Err((kind, message)) = number {
            self.refuse(kind, name, message, value);
        }
        number.ok()
    }

    /// An integer of 64 bits with its sign.
    pub(super) fn integer_64(&mut self, name: &str) -> Option<i64> {
        let beyond = self
            .value(name)
            .filter(|value| value.as_i64().is_none())
            .and_then(|value| Some((value, value.as_f64()?)))
            .filter(|(_, number)| number.fract() == 0.0 && number.abs() >= 9.2e18);
        if let Some((value, number)) = beyond {
            let (kind, name_of_bound, bound, words) = if number > 0.0 {
                ("less_than_equal", "le", i64::MAX, "less than or equal to")
            } else {
                (
                    "greater_than_equal",
                    "ge",
                    i64::MIN,
                    "greater than or equal to",
                )
            };
            self.errors.push(
                FieldError::new(
                    kind,
                    format!("body.{name}"),
                    format!("Input should be {words} {bound}"),
                    value,
                )
                .context(format!("{{'{name_of_bound}': {bound}}}")),
            );
            return None;
        }
        self.integer(name)
    }

    pub(super) fn flag(&mut self, name: &str) -> bool {
        let Some(value) = self.value(name) else {
            return false;
        };
        let read = match value {
            Value::Bool(flag) => Some(*flag),
            Value::String(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "t" | "yes" | "y" | "on" | "1" => Some(true),
                "false" | "f" | "no" | "n" | "off" | "0" => Some(false),
                _ => None,
            },
            other => match other.as_f64() {
                Some(0.0) => Some(false),
                Some(1.0) => Some(true),
                _ => None,
            },
        };
        match read {
            Some(flag) => flag,
            None if value.is_string() || value.is_number() => {
                self.refuse(
                    "bool_parsing",
                    name,
                    "Input should be a valid boolean, unable to interpret input",
                    value,
                );
                false
            }
            None => {
                self.refuse("bool_type", name, "Input should be a valid boolean", value);
                false
            }
        }
    }
}

/// Reads an integer as pydantic does: `2`, `2.0`, `"2"`, `true`.
pub(super) fn whole_number(value: &Value) -> Result<i64, (&'static str, &'static str)> {
    const UNREADABLE: (&str, &str) = (
        "int_parsing",
        "Input should be a valid integer, unable to parse string as an integer",
    );
    match value {
        Value::Bool(flag) => Ok(i64::from(*flag)),
        Value::String(text) => text.trim().parse().map_err(|_not_a_number| UNREADABLE),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => Ok(whole),
            (None, Some(real)) if real.fract() == 0.0 => Ok(saturated(real)),
            _ => Err((
                "int_from_float",
                "Input should be a valid integer, got a number with a fractional part",
            )),
        },
        _ => Err(("int_type", "Input should be a valid integer")),
    }
}

/// A whole number as an integer; what is beyond 64 bits is its end (Python's integers have none; no check tells them apart).
fn saturated(real: f64) -> i64 {
    format!("{real:.0}")
        .parse()
        .unwrap_or(if real > 0.0 { i64::MAX } else { i64::MIN })
}

/// A refused value as vLLM shows it: text up to a bound, containers by their size.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => match number.as_f64() {
            Some(real) if number.is_f64() && real.fract() == 0.0 && real.abs() >= 1e16 => {
                format!("{real:.0}")
            }
            _ => number.to_string(),
        },
        Value::String(text) => match text.char_indices().nth(INPUT_CHARS_MAX) {
            Some((end, _)) => format!("{}...[truncated]", text.get(..end).unwrap_or_default()),
            None => text.clone(),
        },
        Value::Array(items) => format!("<list of {} items>", items.len()),
        Value::Object(fields) => format!("<dict of {} items>", fields.len()),
    }
}

/// Text as Python's `repr` writes it.
pub(super) fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    let mut out = String::from(quote);
    for letter in text.chars() {
        match letter {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            _ if letter == quote => {
                out.push('\\');
                out.push(letter);
            }
            _ if letter.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(letter))),
            _ => out.push(letter),
        }
    }
    out.push(quote);
    out
}
