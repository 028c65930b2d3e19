//! Both halves of a channel in one process, for tests.

use mosec_shm_ring::{
    AgentChannel, Arena, ArenaConfig, ChannelConfig, OnAgentLoss, ShmBackend, ShmConfig, WorkerChannel,
};
use mosec_types::Generation;

/// The halves of a channel, and the arena of `bytes` that it uses.
pub(crate) fn pair(bytes: usize) -> (Arena, AgentChannel, WorkerChannel) {
    let shm = ShmConfig {
        backend: ShmBackend::Memfd,
        ..ShmConfig::default()
    };
    let config = ArenaConfig {
        initial_bytes: bytes,
        max_bytes: bytes,
        shm,
    };
    let arena = Arena::new(config).expect("memory");
    let (agent, end) =
        AgentChannel::create(&arena, Generation(1), &ChannelConfig::default()).expect("a channel");
    agent.hello("{}").expect("a channel with room");
    let (worker, _) = WorkerChannel::attach(end, OnAgentLoss::Tell).expect("a channel");
    (arena, agent, worker)
}
