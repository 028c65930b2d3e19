//! The OpenAPI document of everything that is served: the pipelines' own documents, or one made of their routes. Pure.

use mosec_types::PipelineSpec;
use serde_json::{Map, Value, json};

/// The document. One pipeline's own is passed on as it is; several become one.
pub(crate) fn document<'a>(pipelines: impl IntoIterator<Item = &'a PipelineSpec>) -> String {
    let pipelines: Vec<_> = pipelines.into_iter().collect();
    if let [only] = pipelines[..]
        && let Some(text) = &only.openapi
    {
        return text.clone();
    }
    let mut whole = Document::default();
    for pipeline in pipelines {
        // Whoever deployed it may have written anything; its routes are there all the same.
        let own = pipeline.openapi.as_deref().map(serde_json::from_str);
        match own {
            Some(Ok(Value::Object(own))) => whole.merge(pipeline.name.as_str(), own),
            _ => whole.merge(pipeline.name.as_str(), of_routes(pipeline)),
        }
    }
    whole.into_text()
}

#[derive(Default)]
struct Document {
    paths: Map<String, Value>,
    schemas: Map<String, Value>,
}

impl Document {
    /// Adds a pipeline's paths and schemas. The first to claim a path keeps it, as the routes do.
    fn merge(&mut self, pipeline: &str, mut own: Map<String, Value>) {
        let schemas = own
            .get_mut("components")
            .and_then(|components| components.get_mut("schemas"))
            .map(Value::take);
        let paths = own.remove("paths");
        let (mut paths, mut schemas) = (object(paths), object(schemas));
        // Two pipelines may give one name to different things.
        let taken: Vec<_> = schemas
            .iter()
            .filter(|(name, schema)| self.schemas.get(*name).is_some_and(|other| other != *schema))
            .map(|(name, _)| name.clone())
            .collect();
        for name in taken {
            let unique = format!("{pipeline}.{name}");
            if let Some(schema) = schemas.remove(&name) {
                schemas.insert(unique.clone(), schema);
            }
            let (old, new) = (reference(&name), reference(&unique));
            for value in schemas.values_mut().chain(paths.values_mut()) {
                redirect(value, &old, &new);
            }
        }
        for (path, item) in paths {
            self.paths.entry(path).or_insert(item);
        }
        self.schemas.extend(schemas);
    }

    fn into_text(self) -> String {
        let document = json!({
            "openapi": "3.1.0",
            "info": {"title": "Mosec API", "version": env!("CARGO_PKG_VERSION")},
            "paths": self.paths,
            "components": {"schemas": self.schemas},
        });
        format!("{document:#}")
    }
}

fn object(value: Option<Value>) -> Map<String, Value> {
    match value {
        Some(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn reference(schema: &str) -> String {
    format!("#/components/schemas/{schema}")
}

/// Makes every reference to `old` one to `new`.
///
/// Recursive: serde_json reads 128 levels at most.
fn redirect(value: &mut Value, old: &str, new: &str) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                if key == "$ref" && value == old {
                    *value = new.into();
                } else {
                    redirect(value, old, new);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| redirect(value, old, new)),
        _ => {}
    }
}

/// What can be said of a pipeline that says nothing of itself.
fn of_routes(pipeline: &PipelineSpec) -> Map<String, Value> {
    let paths = pipeline.routes.iter().map(|route| {
        let last = route.last().and_then(|stage| pipeline.stage(stage));
        let mime = match last {
            Some(stage) if stage.streaming => "text/event-stream",
            Some(stage) => stage.mime.as_str(),
            None => "application/octet-stream",
        };
        let text = |description: &str| {
            json!({"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}})
        };
        let post = json!({
            "summary": format!("Inference by {}", pipeline.name),
            "requestBody": {"content": {"application/json": {"schema": {}}}, "required": true},
            "responses": {
                "200": {"description": "Result", "content": {mime: {"schema": {}}}},
                "400": text("Bad request"),
                "408": text("Timeout"),
                "413": text("Request body is too large"),
                "422": text("Request is not valid"),
                "429": text("Too many requests"),
                "500": text("Internal error"),
                "503": text("Not available now"),
            },
        });
        (route.path.clone(), json!({"post": post}))
    });
    let paths: Map<String, Value> = paths.collect();
    let mut document = Map::new();
    document.insert("paths".into(), paths.into());
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipeline(name: &str, path: &str, openapi: Option<String>) -> PipelineSpec {
        serde_json::from_value(json!({
            "name": name, "source": {"dir": "/srv"}, "routes": [{"path": path, "stages": [0]}], "timeout": 1,
            "capacity": 1, "max_request_bytes": 1, "openapi": openapi, "stages": [{
                "name": "Echo_1", "module": "m", "class": "Echo", "replicas": 1, "max_batch_size": 1, "max_wait": 1,
                "timeout": 1, "attempts": 1, "mime": "image/png",
            }],
        }))
        .unwrap()
    }

    fn own(path: &str, schema: Value) -> Option<String> {
        let body =
            json!({"post": {"schema": {"$ref": "#/components/schemas/In"}, "tags": [{"$ref": "#/other"}]}});
        Some(json!({"paths": {path: body}, "components": {"schemas": {"In": schema}}}).to_string())
    }

    fn merged(pipelines: &[PipelineSpec]) -> Value {
        serde_json::from_str(&document(pipelines)).unwrap()
    }

    #[test]
    fn one_document_is_passed_on_as_it_is() {
        let text = "{ \"openapi\" :  \"3.2.0\" }".to_owned();
        assert_eq!(document([&pipeline("a", "/a", Some(text.clone()))]), text);
    }

    #[test]
    fn without_documents_the_routes_are_told() {
        for openapi in [None, Some("no JSON".into()), Some("[]".into())] {
            let pipelines = [pipeline("a", "/a", None), pipeline("b", "/b", openapi)];
            let document = merged(&pipelines);
            assert_eq!(document["openapi"], "3.1.0");
            for path in ["/a", "/b"] {
                let content = &document["paths"][path]["post"]["responses"]["200"]["content"];
                assert!(content["image/png"].is_object(), "{document}");
            }
        }
        assert_eq!(merged(&[])["paths"], json!({}));
    }

    #[test]
    fn schemas_of_one_name_are_kept_apart_unless_they_are_the_same() {
        let (number, text) = (json!({"type": "number"}), json!({"type": "string"}));
        let pipelines = [
            pipeline("a", "/a", own("/a", number.clone())),
            pipeline("b", "/b", own("/b", number.clone())),
            pipeline("c", "/c", own("/c", text.clone())),
        ];
        let document = merged(&pipelines);
        let schema = |path: &str| document["paths"][path]["post"]["schema"]["$ref"].clone();
        assert_eq!(schema("/a"), "#/components/schemas/In");
        assert_eq!(schema("/b"), "#/components/schemas/In");
        assert_eq!(schema("/c"), "#/components/schemas/c.In");
        assert_eq!(document["paths"]["/c"]["post"]["tags"][0]["$ref"], "#/other");
        assert_eq!(
            document["components"]["schemas"],
            json!({"In": number, "c.In": text})
        );
    }

    #[test]
    fn the_first_keeps_a_path() {
        let pipelines = [
            pipeline("a", "/x", None),
            pipeline("b", "/x", own("/x", json!({}))),
        ];
        assert_eq!(
            merged(&pipelines)["paths"]["/x"]["post"]["summary"],
            "Inference by a"
        );
    }
}
