//! Other people's runtimes that run tasks on one thread, each as its users would set it up for a
//! program with sockets: all of them park on epoll.

pub(crate) mod monoio;
pub(crate) mod smol;
pub(crate) mod tokio;
