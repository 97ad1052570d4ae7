//! The numbers of `getaddrinfo`, which differ from system to system.
//!
//! The call itself is another crate's; it takes its flags as the system's own bits. A flag that a
//! system does not have is zero here, so that asking for it changes nothing.

pub(crate) const PASSIVE: i32 = 0x1;
pub(crate) const CANONNAME: i32 = 0x2;
pub(crate) const NUMERIC_HOST: i32 = 0x4;

pub(crate) use self::system::*;

#[cfg(all(target_os = "linux", not(target_env = "uclibc")))]
mod system {
    pub(crate) const V4MAPPED: i32 = 0x8;
    pub(crate) const ALL: i32 = 0x10;
    pub(crate) const ADDRCONFIG: i32 = 0x20;
    pub(crate) const NUMERIC_SERVICE: i32 = 0x400;
    /// The error of a literal address of another family than the one that was asked for.
    pub(crate) const EAI_ADDRFAMILY: i32 = -9;
}

#[cfg(target_vendor = "apple")]
mod system {
    pub(crate) const V4MAPPED: i32 = 0x800;
    pub(crate) const ALL: i32 = 0x100;
    pub(crate) const ADDRCONFIG: i32 = 0x400;
    pub(crate) const NUMERIC_SERVICE: i32 = 0x1000;
    pub(crate) const EAI_ADDRFAMILY: i32 = 1;
}

#[cfg(any(
    target_os = "android",
    target_os = "freebsd",
    target_os = "dragonfly",
    windows
))]
mod system {
    pub(crate) const V4MAPPED: i32 = 0x800;
    pub(crate) const ALL: i32 = 0x100;
    pub(crate) const ADDRCONFIG: i32 = 0x400;
    pub(crate) const NUMERIC_SERVICE: i32 = 0x8;
    pub(crate) const EAI_ADDRFAMILY: i32 = 1;
}

#[cfg(not(any(
    all(target_os = "linux", not(target_env = "uclibc")),
    target_vendor = "apple",
    target_os = "android",
    target_os = "freebsd",
    target_os = "dragonfly",
    windows
)))]
mod system {
    pub(crate) const V4MAPPED: i32 = 0;
    pub(crate) const ALL: i32 = 0;
    pub(crate) const ADDRCONFIG: i32 = 0;
    pub(crate) const NUMERIC_SERVICE: i32 = 0;
    pub(crate) const EAI_ADDRFAMILY: i32 = 1;
}

#[cfg(all(
    test,
    any(target_os = "linux", target_os = "macos", target_os = "freebsd")
))]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_the_system_s() {
        let ours = [
            PASSIVE,
            CANONNAME,
            NUMERIC_HOST,
            V4MAPPED,
            ALL,
            ADDRCONFIG,
            NUMERIC_SERVICE,
        ];
        let system = [
            libc::AI_PASSIVE,
            libc::AI_CANONNAME,
            libc::AI_NUMERICHOST,
            libc::AI_V4MAPPED,
            libc::AI_ALL,
            libc::AI_ADDRCONFIG,
            libc::AI_NUMERICSERV,
        ];
        assert_eq!(ours, system);
    }
}
