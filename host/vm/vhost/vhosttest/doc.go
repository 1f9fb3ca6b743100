// Package vhosttest plays QEMU and the guest's driver against a vhost-user back
// end, so that devices are tested without a machine: the control messages over a
// real unix socket, the guest's memory in a real memfd, kicks and interrupts by
// real event descriptors, and both sides of nothing else. It checks as a driver
// would, and lets a test break every rule that a driver must keep.
//
// Only tests import it. It uses nothing of package vhost, so that a mistake
// there is not repeated here.
package vhosttest
