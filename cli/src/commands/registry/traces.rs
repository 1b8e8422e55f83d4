//! Where a registry's traces go: `[traces]` of its configuration, else OpenTelemetry's variables.

use registry_client::Client;
use registry_server::trace::TraceConfig;

use super::{secret_in, webhook};
use crate::config::serve::traces::{TracesConfig, per_million};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};

/// What the two say together; `None` if neither names a collector.
pub(super) fn traces(
    context: &Context,
    config: Option<&TracesConfig>,
) -> Result<Option<TraceConfig>, CliError> {
    let variable = |name: &str| context.text_variable(name).filter(|text| !text.is_empty());
    let usage = |message: String| CliError::new(Kind::Usage, message);
    let usual = TracesConfig::default();
    let said = config.unwrap_or(&usual);
    let off = variable("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"))
        || variable("OTEL_TRACES_EXPORTER").is_some_and(|text| text == "none");
    let below = |base: &str| format!("{}/v1/traces", base.trim_end_matches('/'));
    let url = match &said.endpoint {
        Some(endpoint) => Some(below(endpoint)),
        None if off => None,
        None => variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
            .or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT").map(|base| below(&base))),
    };
    let Some(url) = url else {
        return match config {
            None => Ok(None),
            // With the table alone nothing would be sent, and nobody would know.
            Some(_) if off => Ok(None),
            Some(_) => Err(usage(
                "[traces] needs `endpoint`, or OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(),
            )),
        };
    };
    let mut headers = said.headers.clone();
    if said.endpoint.is_none() {
        let protocol = variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
            .or_else(|| variable("OTEL_EXPORTER_OTLP_PROTOCOL"));
        if protocol.as_deref() == Some("grpc") {
            return Err(usage(
                "OTEL_EXPORTER_OTLP_PROTOCOL is grpc: traces are sent by HTTP, as http/json"
                    .to_owned(),
            ));
        }
        let text = variable("OTEL_EXPORTER_OTLP_TRACES_HEADERS")
            .or_else(|| variable("OTEL_EXPORTER_OTLP_HEADERS"));
        headers.extend(pairs(&text.unwrap_or_default()));
    }
    if let Some(file) = &said.token {
        let token = secret_in(file)?;
        headers.push(("authorization".to_owned(), format!("Bearer {token}")));
    }
    let client = Client::new(context.client_options()?).blame(Kind::Environment)?;
    let exporter = webhook::sender(&client, &url, headers, said.insecure, said.ca.clone());
    let exporter = exporter.map_err(|error| usage(format!("traces: {error}")))?;
    let mut traces = TraceConfig::new(exporter);
    let sampler = variable("OTEL_TRACES_SAMPLER").unwrap_or_default();
    let part = match (
        said.sample_per_million,
        sampler.trim_start_matches("parentbased_"),
    ) {
        (Some(part), _) => part,
        (None, "always_off") => 0,
        (None, "traceidratio") => {
            let part = variable("OTEL_TRACES_SAMPLER_ARG").unwrap_or_else(|| "1".to_owned());
            per_million(&part).map_err(|why| usage(format!("OTEL_TRACES_SAMPLER_ARG: {why}")))?
        }
        _ => 1_000_000,
    };
    traces.ratio = f64::from(part) / 1e6;
    let service = said
        .service
        .clone()
        .or_else(|| variable("OTEL_SERVICE_NAME"));
    traces.service = service.unwrap_or(traces.service);
    let attributes = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    traces.attributes = pairs(&attributes);
    traces.attributes.retain(|(key, _)| key != "service.name");
    let version = (
        "service.version".to_owned(),
        env!("CARGO_PKG_VERSION").to_owned(),
    );
    traces.attributes.push(version);
    traces.interval = said.interval.unwrap_or(traces.interval);
    traces.timeout = said.timeout.unwrap_or(traces.timeout);
    Ok(Some(traces))
}

/// `key=value,key=value`, percent-encoded, as OpenTelemetry's variables have it; what is none is left out.
fn pairs(text: &str) -> Vec<(String, String)> {
    let pair = |word: &str| {
        let (key, value) = word.split_once('=')?;
        let key = key.trim().to_owned();
        (!key.is_empty()).then(|| (key, decoded(value.trim())))
    };
    text.split(',').filter_map(pair).collect()
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_lists_of_pairs() {
        let check = |text: &str, expect: &[(&str, &str)]| {
            let expect: Vec<(String, String)> = expect
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect();
            assert_eq!(pairs(text), expect, "{text}");
        };
        check("", &[]);
        check("a=b, c = d%20e,x,=y", &[("a", "b"), ("c", "d e")]);
        check("a=%zz%4", &[("a", "%zz%4")]);
    }
}
