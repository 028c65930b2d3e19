//! What is taken of each node, and whether a replica still fits. Pure.

use std::collections::BTreeMap;
use std::fmt;

use mosec_types::resources::{WHOLE_CPU, WHOLE_GPU};
use mosec_types::topology::{Node, Placement};
use mosec_types::{Capacity, Needs, NodeId};

/// What replicas take of all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Usage(BTreeMap<NodeId, NodeUsage>);

/// What replicas take of one node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct NodeUsage {
    replicas: u32,
    cpus: u32,
    memory: u64,
    gpus: BTreeMap<u32, GpuUsage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct GpuUsage {
    share: u32,
    memory: u64,
}

/// What a node has too little of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shortage {
    /// Whole GPUs, each with so much memory.
    Gpus {
        wanted: u32,
        free: u32,
        all: u32,
        memory: u64,
    },
    /// Room on any one GPU, of this share and memory.
    GpuShare {
        wanted: u32,
        memory: u64,
        all: u32,
    },
    Cpus {
        wanted: u32,
        free: u32,
        all: u32,
    },
    Memory {
        wanted: u64,
        free: u64,
        all: u64,
    },
}

impl Usage {
    /// Counts a replica with these needs at its place.
    pub fn add(&mut self, placement: &Placement, needs: &Needs) {
        let node = self.0.entry(placement.node.clone()).or_default();
        node.replicas += 1;
        node.cpus = node.cpus.saturating_add(needs.cpus);
        node.memory = node.memory.saturating_add(needs.memory);
        for &gpu in &placement.gpus {
            let gpu = node.gpus.entry(gpu).or_default();
            gpu.share = gpu.share.saturating_add(needs.gpus.min(WHOLE_GPU));
            gpu.memory = gpu.memory.saturating_add(needs.gpu_memory);
        }
    }

    /// Takes back what [`add`](Self::add) counted.
    pub fn remove(&mut self, placement: &Placement, needs: &Needs) {
        let Some(node) = self.0.get_mut(&placement.node) else {
            return;
        };
        node.replicas = node.replicas.saturating_sub(1);
        node.cpus = node.cpus.saturating_sub(needs.cpus);
        node.memory = node.memory.saturating_sub(needs.memory);
        for number in &placement.gpus {
            if let Some(gpu) = node.gpus.get_mut(number) {
                gpu.share = gpu.share.saturating_sub(needs.gpus.min(WHOLE_GPU));
                gpu.memory = gpu.memory.saturating_sub(needs.gpu_memory);
            }
        }
    }

    /// Replicas on a node, of all revisions.
    pub fn replicas(&self, node: &NodeId) -> u32 {
        self.0.get(node).map_or(0, |usage| usage.replicas)
    }

    /// The GPUs that a replica with these needs would have on the node, fewest left over; an error says what it lacks.
    pub fn fit(&self, node: &Node, needs: &Needs) -> Result<Vec<u32>, Shortage> {
        let nothing = NodeUsage::default();
        let usage = self.0.get(&node.id).unwrap_or(&nothing);
        let Capacity { cpus, memory, .. } = node.capacity;
        let free = cpus.saturating_sub(usage.cpus);
        if cpus > 0 && needs.cpus > free {
            let (wanted, all) = (needs.cpus, cpus);
            return Err(Shortage::Cpus { wanted, free, all });
        }
        let free = memory.saturating_sub(usage.memory);
        if memory > 0 && needs.memory > free {
            let (wanted, all) = (needs.memory, memory);
            return Err(Shortage::Memory { wanted, free, all });
        }
        match needs.gpus {
            0 => Ok(Vec::new()),
            share if share < WHOLE_GPU => usage.share(&node.capacity, needs),
            _ => usage.whole(&node.capacity, needs),
        }
    }
}

impl NodeUsage {
    fn of_gpu(&self, number: u32) -> GpuUsage {
        self.gpus.get(&number).copied().unwrap_or_default()
    }

    /// GPUs that nobody else uses. The smallest that will do, so that large ones are left for those that need them.
    fn whole(&self, capacity: &Capacity, needs: &Needs) -> Result<Vec<u32>, Shortage> {
        let wanted = needs.gpus / WHOLE_GPU;
        let mut free: Vec<_> = (0u32..)
            .zip(&capacity.gpus)
            .filter(|(number, gpu)| self.of_gpu(*number).share == 0 && gpu.memory >= needs.gpu_memory)
            .map(|(number, gpu)| (gpu.memory, number))
            .collect();
        free.sort_unstable();
        if free.len() < wanted as usize {
            let large = capacity.gpus.iter().filter(|gpu| gpu.memory >= needs.gpu_memory);
            return Err(Shortage::Gpus {
                wanted,
                free: count(free.len()),
                all: count(large.count()),
                memory: needs.gpu_memory,
            });
        }
        let mut chosen: Vec<_> = free
            .into_iter()
            .take(wanted as usize)
            .map(|(_, number)| number)
            .collect();
        chosen.sort_unstable();
        Ok(chosen)
    }

    /// The fullest GPU that still has room, so that others stay whole.
    fn share(&self, capacity: &Capacity, needs: &Needs) -> Result<Vec<u32>, Shortage> {
        let has_room = |(number, gpu): &(u32, &mosec_types::Gpu)| {
            let used = self.of_gpu(*number);
            used.share + needs.gpus <= WHOLE_GPU && used.memory.saturating_add(needs.gpu_memory) <= gpu.memory
        };
        let fullest = |(number, gpu): &(u32, &mosec_types::Gpu)| {
            (
                self.of_gpu(*number).share,
                std::cmp::Reverse((gpu.memory, *number)),
            )
        };
        let gpus = (0u32..).zip(&capacity.gpus).filter(has_room);
        match gpus.max_by_key(fullest) {
            Some((number, _)) => Ok(vec![number]),
            None => Err(Shortage::GpuShare {
                wanted: needs.gpus,
                memory: needs.gpu_memory,
                all: count(capacity.gpus.len()),
            }),
        }
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A size in GiB, as `1.5 GiB`.
fn gib(bytes: u64) -> String {
    let tenths = bytes.saturating_mul(10) >> 30;
    format!("{}.{} GiB", tenths / 10, tenths % 10)
}

/// A number of parts of `whole`, as `0.25`.
fn parts(parts: u32, whole: u32) -> f64 {
    f64::from(parts) / f64::from(whole)
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of_memory = |memory: u64| match memory {
            0 => String::new(),
            memory => format!(" of {}", gib(memory)),
        };
        match *self {
            Self::Gpus { all: 0, memory, .. } => write!(f, "has no GPU{}", of_memory(memory)),
            Self::Gpus {
                wanted,
                free,
                all,
                memory,
            } => write!(
                f,
                "has {free} of {all} GPUs{} free, not {wanted}",
                of_memory(memory)
            ),
            Self::GpuShare { all: 0, .. } => f.write_str("has no GPU"),
            Self::GpuShare { wanted, memory, all } => {
                write!(
                    f,
                    "has none of its {all} GPUs free for {}",
                    parts(wanted, WHOLE_GPU)
                )?;
                match memory {
                    0 => Ok(()),
                    memory => write!(f, " and {}", gib(memory)),
                }
            }
            Self::Cpus { wanted, free, all } => {
                let of = |cpus| parts(cpus, WHOLE_CPU);
                write!(f, "has {} of {} cpus free, not {}", of(free), of(all), of(wanted))
            }
            Self::Memory { wanted, free, all } => write!(
                f,
                "has {} of {} memory free, not {}",
                gib(free),
                gib(all),
                gib(wanted)
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use mosec_types::Gpu;

    use super::*;
    use crate::fixtures::{placement, up};

    const GIB: u64 = 1 << 30;

    fn host(gpus: &[u64]) -> Node {
        let gpu = |&gib: &u64| Gpu {
            model: "test".into(),
            memory: gib * GIB,
        };
        Node {
            capacity: Capacity {
                gpus: gpus.iter().map(gpu).collect(),
                cpus: 4000,
                memory: 16 * GIB,
            },
            ..up("a")
        }
    }

    fn gpus(gpus: u32, gib: u64) -> Needs {
        Needs {
            gpus,
            gpu_memory: gib * GIB,
            ..Default::default()
        }
    }

    /// Places replicas one after another on one node: the GPUs of each, or what was lacking.
    fn place(node: &Node, needs: &[Needs]) -> Vec<Result<Vec<u32>, String>> {
        let mut usage = Usage::default();
        let mut results = Vec::new();
        for needs in needs {
            let fit = usage.fit(node, needs);
            if let Ok(gpus) = &fit {
                let mut at = placement(0, 1, "a");
                at.gpus = gpus.clone();
                usage.add(&at, needs);
            }
            results.push(fit.map_err(|shortage| shortage.to_string()));
        }
        results
    }

    #[test]
    fn whole_gpus_are_one_replicas_own() {
        let found = place(
            &host(&[80, 40, 80]),
            &[
                gpus(100, 0),
                gpus(100, 60),
                gpus(200, 0),
                gpus(100, 0),
                gpus(50, 0),
            ],
        );
        let expected = [
            Ok(vec![1]),
            Ok(vec![0]),
            Err("has 1 of 3 GPUs free, not 2".into()),
            Ok(vec![2]),
            Err("has none of its 3 GPUs free for 0.5".into()),
        ];
        assert_eq!(found, expected);
        assert_eq!(
            place(&host(&[40]), &[gpus(100, 60)]),
            [Err("has no GPU of 60.0 GiB".to_owned())]
        );
        assert_eq!(place(&host(&[]), &[gpus(25, 0)]), [Err("has no GPU".to_owned())]);
    }

    #[test]
    fn shares_fill_one_gpu_before_another() {
        let found = place(
            &host(&[40, 40]),
            &[gpus(50, 0), gpus(25, 0), gpus(50, 30), gpus(25, 20), gpus(100, 0)],
        );
        let expected = [
            Ok(vec![0]),
            Ok(vec![0]),
            Ok(vec![1]),
            Ok(vec![0]),
            Err("has 0 of 2 GPUs free, not 1".into()),
        ];
        assert_eq!(found, expected);
        assert_eq!(
            place(&host(&[40]), &[gpus(10, 30), gpus(10, 20)])[1],
            Err("has none of its 1 GPUs free for 0.1 and 20.0 GiB".into())
        );
    }

    #[test]
    fn processors_and_memory_limit_where_they_are_known() {
        let half = Needs {
            cpus: 2500,
            memory: 9 * GIB,
            ..Default::default()
        };
        let heavy = Needs {
            memory: 9 * GIB,
            ..Default::default()
        };
        assert_eq!(
            place(&host(&[]), &[half, half, heavy]),
            [
                Ok(vec![]),
                Err("has 1.5 of 4 cpus free, not 2.5".into()),
                Err("has 7.0 GiB of 16.0 GiB memory free, not 9.0 GiB".into()),
            ]
        );
        assert!(place(&up("a"), &[half; 100]).iter().all(Result::is_ok));
    }
}
