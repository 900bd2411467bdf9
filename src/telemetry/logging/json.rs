//! One JSON object for each line. What a line's spans say stands beside what the line says: `.offset` finds all lines of a document.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serializer as _;
use serde::ser::SerializeMap as _;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::fmt::format::{FormatEvent, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use crate::clock;

/// What each line begins with, beside its message. No field has one of these names.
const OWN: [&str; 3] = ["timestamp", "level", "target"];

/// Of equal names the one holds that is nearest to the line.
pub(super) struct FlatJson;

impl<S> FormatEvent<S, JsonFields> for FlatJson
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        for span in context.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            let Some(written) = extensions.get::<FormattedFields<JsonFields>>() else {
                continue;
            };
            // Written by `JsonFields`, so it is an object; without one the line is told all the same.
            let span: Map<String, Value> = serde_json::from_str(written).unwrap_or_default();
            // From the line outwards: what is nearer is there already.
            for (name, value) in span {
                fields.0.entry(name).or_insert(value);
            }
        }
        event.record(&mut fields);
        let line = write(event.metadata(), fields.0).map_err(|_unwritable| fmt::Error)?;
        writeln!(writer, "{line}")
    }
}

fn write(
    metadata: &Metadata<'_>,
    mut fields: BTreeMap<String, Value>,
) -> Result<String, serde_json::Error> {
    let mut line = Vec::with_capacity(512);
    let mut serializer = serde_json::Serializer::new(&mut line);
    let mut object = serializer.serialize_map(None)?;
    let message = fields.remove("message").unwrap_or_default();
    object.serialize_entry("timestamp", &format!("{:.3}", clock::now()))?;
    object.serialize_entry("level", metadata.level().as_str())?;
    object.serialize_entry("message", &message)?;
    object.serialize_entry("target", metadata.target())?;
    for (name, value) in &fields {
        if !OWN.contains(&name.as_str()) {
            object.serialize_entry(name, value)?;
        }
    }
    object.end()?;
    Ok(String::from_utf8_lossy(&line).into_owned())
}

#[derive(Default)]
struct Fields(BTreeMap<String, Value>);

impl Fields {
    fn set(&mut self, field: &Field, value: impl Into<Value>) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}"));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value);
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.set(field, value);
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.set(field, value);
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.set(field, value);
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.set(field, value);
    }
}
