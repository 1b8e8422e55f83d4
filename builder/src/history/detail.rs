//! What a journal keeps of each step so that its sandbox can be made again.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cache::ingredients::sounds_secret;
use crate::graph::{Definition, ExecOp, Op, Vertex};
use crate::ops::base_of;

/// How a step's root and process come about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Detail {
    /// The step whose files lie below, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) base: Option<usize>,
    /// What a `RUN` runs and in what; its variables without those that may hold secrets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<Box<ExecOp>>,
    /// Names of the variables that were left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) hidden: Vec<String>,
    /// An image's DiffIDs, oldest first; the layer of a tree.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) layers: Vec<String>,
    /// The folder of a context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) folder: Option<String>,
}

impl Detail {
    /// Those of all vertices; `folder` knows where contexts are.
    pub(crate) fn of_all<'f>(
        definition: &Definition,
        folder: impl Fn(&str) -> Option<&'f Path>,
    ) -> Vec<Detail> {
        let vertices = definition.vertices().iter();
        vertices.map(|vertex| Detail::of(vertex, &folder)).collect()
    }

    fn of<'f>(vertex: &Vertex, folder: &impl Fn(&str) -> Option<&'f Path>) -> Detail {
        let mut detail = Detail {
            base: base_of(vertex),
            ..Detail::default()
        };
        match &vertex.op {
            Op::Exec(exec) => {
                let mut run = exec.clone();
                let mut shows = |variable: &str| {
                    let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
                    let hides = sounds_secret(name, value);
                    if hides {
                        detail.hidden.push(name.to_owned());
                    }
                    !hides
                };
                run.env.retain(|variable| shows(variable));
                run.proxy_env.retain(|variable| shows(variable));
                detail.run = Some(Box::new(run));
            }
            Op::Image(image) => {
                let layers = image.diff_ids.iter();
                detail.layers = layers.map(ToString::to_string).collect();
            }
            Op::Tree(tree) => {
                let layer = tree.layer.as_ref();
                detail.layers = layer.iter().map(|layer| layer.id.to_string()).collect();
            }
            Op::Context(context) => {
                let path = folder(&context.name).map(|path| {
                    let whole = path.canonicalize();
                    whole.unwrap_or_else(|_| path.to_owned())
                });
                detail.folder = path.and_then(|path| Some(path.to_str()?.to_owned()));
            }
            Op::File(_) | Op::Http(_) | Op::Git(_) | Op::Merge => {}
        }
        detail
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::OpMetadata;

    #[test]
    fn variables_that_may_be_secret_are_named_and_no_more() {
        let mut definition = Definition::new();
        let exec = ExecOp {
            argv: vec!["make".to_owned()],
            env: ["A=b", "API_TOKEN=hush", "URL=https://me:hush@host/"]
                .map(Into::into)
                .to_vec(),
            proxy_env: vec!["http_proxy=http://me:hush@proxy".to_owned()],
            ..ExecOp::default()
        };
        definition.add(Op::Exec(exec), Vec::new(), OpMetadata::default());
        let details = Detail::of_all(&definition, |_| None);
        let text = serde_json::to_string(&details).unwrap();
        assert!(!text.contains("hush"), "{text}");
        assert_eq!(details[0].hidden, ["API_TOKEN", "URL", "http_proxy"]);
        assert_eq!(details[0].run.as_ref().unwrap().env, ["A=b".into()]);
        let read: Vec<Detail> = serde_json::from_str(&text).unwrap();
        assert_eq!(read, details);
    }
}
