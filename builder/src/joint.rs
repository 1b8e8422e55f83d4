//! Plans for several platforms as one graph, in which what they share stands once.

use crate::graph::Definition;
use crate::lower::Plan;

/// One graph, and the images that are made of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct JointPlan {
    /// Everything that any of the images needs.
    pub(crate) definition: Definition,
    /// What lowering said for each platform, in the order of the platforms; their vertices are those of the one graph, and
    /// their own graphs are empty.
    pub(crate) images: Vec<Plan>,
}

impl JointPlan {
    /// Adds a plan.
    pub(crate) fn add(&mut self, mut plan: Plan) {
        let places = self.definition.absorb(std::mem::take(&mut plan.definition));
        let vertices = plan.history.iter_mut().map(|step| &mut step.vertex);
        for vertex in vertices.chain([&mut plan.root]).flatten() {
            *vertex = places[vertex.0];
        }
        self.images.push(plan);
    }

    /// The images' root file systems, each once.
    pub(crate) fn roots(&self) -> Vec<usize> {
        let roots = self.images.iter().filter_map(|image| image.root);
        let mut roots: Vec<usize> = roots.map(|root| root.0).collect();
        roots.sort_unstable();
        roots.dedup();
        roots
    }
}
