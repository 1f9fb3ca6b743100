// Package vm is the Machine contract: one virtual machine, from its start to
// its end, as the daemon sees it, whatever hypervisor runs it.
//
// host/daemon makes a Config, gets a Machine from one of the drivers
// (host/vm/qemu, host/vm/vz) and uses nothing else of it. host/vm/vmtest has
// the conformance suite that every driver passes, and an in-memory machine.
//
// A driver's New does no I/O. A Machine has one life: it is started once, and
// once it has ended it stays so; the next boot is a new Machine with a new
// Config (and, in it, a new boot key).
//
// What a hypervisor can do beyond this (name its acceleration, share folders)
// are small optional interfaces, found by a type assertion.
//
// The package must not know what runs in the guest, nor which hypervisors
// exist.
package vm
