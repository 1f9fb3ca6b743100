// Package qemu runs a machine with QEMU on Linux: with KVM, or with software
// emulation where KVM cannot be used. It compiles for other systems and does
// not work there: its vsock device needs QEMU's guest memory as a memfd and
// an eventfd (host/vm/vhost), which are Linux's. host/daemon refuses it there.
//
// host/daemon makes a Machine with New and then knows it only as a vm.Machine.
// QEMU is a child process that is told all on its command line (args.go) and
// steered over QMP on an inherited socket (qmp.go): nobody else can reach its
// monitor. vsock is a vhost-user device that this process serves
// (host/vm/vhost/vsockdev), so that neither root nor a module of the host's
// kernel is needed. Start is a list of steps, and the machine's end undoes the
// same list.
//
// The package must not know what runs in the guest, beyond the kernel
// parameters that QEMU's devices need.
package qemu
