// Package runtime runs containers: it turns an OCI runtime-spec into processes
// with namespaces, a cgroup of version 2, mounts and confinement of their own.
//
// The life of a container is Create (cloned into its cgroup, set up, waiting),
// Start (execve), Wait and Exit, Delete; Exec adds processes in between. The
// heavy part runs in cmd/dhow-enter, between clone and execve: package enter
// holds its side and the messages, and this package precomputes what it needs
// so that it only makes system calls. Nothing is shelled out to, no thread of
// the agent enters a container's mount namespace, and every process is known
// by a pidfd, waited for by one parked goroutine (no thread).
//
// The callers are the engine (by the types of this package), and the agent,
// which makes the one Runtime. It must not know of images, networks or the
// Docker API.
//
// dhow-enter is executed from a file that nobody can write: as it is where it
// lies on a read-only file system, else from a sealed copy in memory, so that
// no container can overwrite it through /proc/PID/exe (CVE-2019-5736).
package runtime
