// Command dhow-agent is the container engine in the guest. In a machine,
// dhow-init starts it with the boot's data on standard input; on plain Linux it
// serves the Docker API on a unix socket:
//
//	dhow-agent --root DIR --socket PATH [--cgroup-root DIR] [--enter PATH]
package main
