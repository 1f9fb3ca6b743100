// Package seccomp makes seccomp filters: docker's profiles for a container's
// capabilities, and their compilation to classic BPF without libseccomp.
//
// The compiler is pure and runs in the agent; dhow-enter only installs the
// program.
package seccomp
