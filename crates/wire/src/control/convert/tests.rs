//! Round trips through protobuf's bytes, and the errors of messages that stand for nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mosec_types::rollout::{Bounds, CanarySpec, HeaderMatch};
use mosec_types::spec::{Batching, Delivery, PythonSource, Spread};
use mosec_types::topology::{Deployment, Node, NodeHealth, Phase, Placement};
use mosec_types::{
    BundleId, Capacity, Gpu, Incarnation, Needs, NodeId, PipelineName, PipelineSpec, ReplicaId, Revision,
    RolloutSpec, RouteSpec, StageIndex, StageKey, StageSpec, Topology, WorkerState, WorkerStatus,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use prost::Message;

use crate::control::proto;

fn map() -> impl Strategy<Value = BTreeMap<String, String>> {
    btree_map("[a-z]{0,5}", ".{0,8}", 0..3)
}

fn millis() -> impl Strategy<Value = Duration> {
    (0u64..1 << 40).prop_map(Duration::from_millis)
}

prop_compose! {
    fn source()(
        dir in "/[a-z]{0,8}",
        main in option::of("[a-z]{1,6}"),
        argv in vec(".{0,5}", 0..3),
        python in option::of("[a-z]{0,6}"),
        bundle in option::of(any::<[u8; 32]>().prop_map(BundleId::from_digest)),
        requirements in vec(".{0,5}", 0..3),
    ) -> PythonSource {
        PythonSource { dir, main, argv, python, bundle, requirements }
    }
}

prop_compose! {
    fn stage()(
        (name, module, class, mime) in ("[a-z]{1,6}", "[a-z]{1,6}", "[A-Z]{1,6}", "[a-z/]{1,9}"),
        (replicas, max_batch_size, attempts) in any::<(u32, u32, u32)>(),
        (max_wait, timeout) in (millis(), millis()),
        env in vec(map(), 0..3),
        node_labels in map(),
        delivery in prop_oneof![Just(Delivery::Retry), Just(Delivery::AtMostOnce)],
        streaming in any::<bool>(),
        batching in prop_oneof![Just(Batching::Window), Just(Batching::Adaptive)],
        request_headers in vec("[a-z-]{1,8}", 0..3),
        (gpus, gpu_memory, cpus, memory) in any::<(u32, u64, u32, u64)>(),
        spread in vec(("[a-z]{0,4}", any::<Option<u32>>()).prop_map(|(by, max)| Spread { by, max }), 0..3),
        anti_affinity in vec(any::<u16>().prop_map(StageIndex), 0..3),
    ) -> StageSpec {
        StageSpec { name, module, class, replicas, max_batch_size, max_wait, timeout, env, node_labels, delivery, attempts, mime, streaming, batching, request_headers, needs: Needs { gpus, gpu_memory, cpus, memory }, spread, anti_affinity }
    }
}

prop_compose! {
    fn rollout()(
        max_parallel in any::<u32>(),
        min_healthy_time in millis(),
        progress_deadline in option::of(millis()),
        canary in option::of((any::<u32>(), any::<u32>(), option::of(("[a-z-]{1,5}", ".{0,5}")), any::<bool>())),
        (max_errors, max_p99, min_requests) in (any::<Option<u32>>(), option::of(millis()), any::<u32>()),
    ) -> RolloutSpec {
        let canary = canary.map(|(replicas, weight, header, auto_promote)| CanarySpec {
            replicas, weight, auto_promote,
            header: header.map(|(name, value)| HeaderMatch { name, value }),
        });
        RolloutSpec { max_parallel, min_healthy_time, progress_deadline, canary, bounds: Bounds { max_errors, max_p99, min_requests } }
    }
}

prop_compose! {
    fn spec()(
        name in "[a-z0-9]{1,10}",
        source in source(),
        stages in vec(stage(), 0..4),
        routes in vec(("/[a-z]{0,5}", vec(any::<u16>().prop_map(StageIndex), 0..4)), 0..3),
        timeout in millis(),
        capacity in any::<u32>(),
        max_request_bytes in any::<u64>(),
        openapi in option::of(".{0,20}"),
        rollout in rollout(),
    ) -> PipelineSpec {
        let routes = routes.into_iter().map(|(path, stages)| RouteSpec { path, stages }).collect();
        PipelineSpec { name: PipelineName::new(name).unwrap(), source, stages, routes, timeout, capacity, max_request_bytes, openapi, rollout }
    }
}

prop_compose! {
    fn node()(
        id in "[a-z]{1,5}", incarnation in any::<u64>(), address in ".{0,10}", labels in map(), draining in any::<bool>(),
        (gpus, cpus, memory) in (vec((".{0,5}", any::<u64>()), 0..3), any::<u32>(), any::<u64>()),
        health in prop_oneof![Just(NodeHealth::Up), Just(NodeHealth::Suspect), Just(NodeHealth::Down)],
    ) -> Node {
        let gpus = gpus.into_iter().map(|(model, memory)| Gpu { model, memory }).collect();
        let capacity = Capacity { gpus, cpus, memory };
        Node { id: NodeId::new(id).unwrap(), incarnation: Incarnation(incarnation), address, health, labels, draining, capacity, build: None }
    }
}

prop_compose! {
    fn deployment()(
        revision in any::<u64>(),
        spec in spec(),
        phase in prop_oneof![Just(Phase::Starting), Just(Phase::Canary), Just(Phase::Rolling), Just(Phase::Retiring), Just(Phase::Serving), ".{0,20}".prop_map(|reason| Phase::Failed { reason })],
        replicas in vec(any::<u32>(), 0..4),
        weight in any::<u32>(),
        placements in vec((any::<u16>(), any::<u32>(), "[a-z]{1,5}", vec(any::<u32>(), 0..3)), 0..5),
    ) -> Deployment {
        let place = |(stage, replica, node, gpus): (u16, u32, String, Vec<u32>)| Placement {
            stage: StageIndex(stage), replica: ReplicaId(replica), node: NodeId::new(node).unwrap(), gpus,
        };
        let placements = placements.into_iter().map(place).collect();
        Deployment { revision: Revision(revision), spec: Arc::new(spec), phase, replicas, weight, placements }
    }
}

prop_compose! {
    fn topology()(version in any::<u64>(), nodes in vec(node(), 0..3), deployments in vec(deployment(), 0..3)) -> Topology {
        Topology { version, nodes, deployments }
    }
}

prop_compose! {
    fn worker()(
        (revision, stage, replica, restarts, failed_starts) in any::<(u64, u16, u32, u32, u32)>(),
        state in prop_oneof![
            Just(WorkerState::Starting), Just(WorkerState::Ready), Just(WorkerState::BackOff),
            Just(WorkerState::Draining), Just(WorkerState::Stopped),
        ],
        pid in any::<Option<u32>>(),
        last_error in option::of(".{0,30}"),
    ) -> WorkerStatus {
        let stage = StageKey { revision: Revision(revision), stage: StageIndex(stage) };
        WorkerStatus { stage, replica: ReplicaId(replica), state, pid, restarts, failed_starts, last_error }
    }
}

prop_compose! {
    /// As the control plane makes them: in order, each node and revision once, and revisions have one specification.
    fn ordered()(topology in topology(), revisions in vec(0u64..3, 3)) -> Topology {
        let nodes: BTreeMap<_, _> = topology.nodes.into_iter().map(|node| (node.id.clone(), node)).collect();
        let mut deployments = BTreeMap::new();
        for (mut deployment, revision) in topology.deployments.into_iter().zip(revisions) {
            deployment.revision = Revision(revision);
            deployment.spec = Arc::new(fixed_spec(revision));
            deployments.insert(deployment.revision, deployment);
        }
        Topology {
            version: topology.version,
            nodes: nodes.into_values().collect(),
            deployments: deployments.into_values().collect(),
        }
    }
}

/// The specification of a revision.
fn fixed_spec(revision: u64) -> PipelineSpec {
    PipelineSpec {
        name: PipelineName::new(format!("p{revision}")).unwrap(),
        source: PythonSource::default(),
        stages: Vec::new(),
        routes: Vec::new(),
        timeout: Duration::from_secs(1),
        capacity: 1,
        max_request_bytes: 1,
        openapi: None,
        rollout: Default::default(),
    }
}

/// Sends a message through its bytes.
fn transmit<M: Message + Default>(message: M) -> M {
    M::decode(message.encode_to_vec().as_slice()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_topology_survives_the_wire(topology in topology()) {
        let received = transmit(proto::Topology::from(&topology));
        prop_assert_eq!(Topology::try_from(received), Ok(topology));
    }

    /// Whoever has the older one is led to the newer one, through protobuf's bytes.
    #[test]
    fn a_delta_leads_from_one_topology_to_another(older in ordered(), newer in ordered()) {
        let delta = newer.since(&older);
        let received = transmit(proto::TopologyDelta::from(&delta));
        let received = super::delta(newer.version, received).unwrap();
        prop_assert_eq!(&received, &delta);
        let mut topology = older;
        topology.apply(received).unwrap();
        prop_assert_eq!(topology, newer);
    }

    #[test]
    fn a_worker_survives_the_wire(worker in worker()) {
        let received = transmit(proto::WorkerStatus::from(&worker));
        prop_assert_eq!(WorkerStatus::try_from(received), Ok(worker));
    }
}

fn sample() -> proto::Topology {
    let stage = proto::StageSpec {
        delivery: proto::Delivery::Retry.into(),
        ..Default::default()
    };
    let spec = proto::PipelineSpec {
        name: "p".into(),
        source: Some(Default::default()),
        stages: vec![stage],
        routes: vec![proto::RouteSpec {
            path: "/".into(),
            stages: vec![0],
        }],
        ..Default::default()
    };
    let node = proto::Node {
        id: "n".into(),
        health: proto::NodeHealth::Up.into(),
        ..Default::default()
    };
    let deployment = proto::Deployment {
        spec: Some(spec),
        phase: proto::Phase::Starting.into(),
        placements: vec![proto::Placement {
            stage: 0,
            replica: 1,
            node: "n".into(),
            gpus: Vec::new(),
        }],
        ..Default::default()
    };
    proto::Topology {
        version: 1,
        nodes: vec![node],
        deployments: vec![deployment],
    }
}

#[test]
fn each_bad_field_is_named() {
    fn spec(t: &mut proto::Topology) -> &mut proto::PipelineSpec {
        t.deployments[0].spec.as_mut().unwrap()
    }
    type Edit = fn(&mut proto::Topology);
    let cases: &[(&str, Edit)] = &[
        ("nodes[0].id: invalid node name \"N\"", |t| {
            t.nodes[0].id = "N".into()
        }),
        ("nodes[0].health: is missing", |t| t.nodes[0].health = 0),
        ("nodes[0].health: unknown value 9", |t| t.nodes[0].health = 9),
        ("deployments[0].phase: unknown value -1", |t| {
            t.deployments[0].phase = -1
        }),
        ("deployments[0].spec: is missing", |t| {
            t.deployments[0].spec = None
        }),
        ("deployments[0].spec.source: is missing", |t| {
            spec(t).source = None
        }),
        ("deployments[0].spec.name: invalid pipeline name", |t| {
            spec(t).name.clear()
        }),
        ("deployments[0].spec.stages[0].delivery: unknown value 3", |t| {
            spec(t).stages[0].delivery = 3
        }),
        ("deployments[0].spec.routes[0].stages: stage 65536 is", |t| {
            spec(t).routes[0].stages.push(65_536)
        }),
        ("deployments[0].placements[0].stage: stage 70000 is", |t| {
            t.deployments[0].placements[0].stage = 70_000
        }),
    ];
    assert!(Topology::try_from(sample()).is_ok());
    for (expected, edit) in cases {
        let mut topology = sample();
        edit(&mut topology);
        let error = Topology::try_from(topology).unwrap_err().to_string();
        assert!(
            error.starts_with(expected),
            "{error:?} should start with {expected:?}"
        );
    }
}

#[test]
fn a_workers_state_must_be_known() {
    let error = WorkerStatus::try_from(proto::WorkerStatus {
        state: 42,
        ..Default::default()
    })
    .unwrap_err();
    assert_eq!(error.to_string(), "state: unknown value 42");
}
