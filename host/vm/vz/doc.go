// Package vz runs a machine with Apple's Virtualization framework, on macOS 12.3
// and later, by github.com/Code-Hex/vz/v3. It is the default driver there.
//
// host/daemon makes a Machine with New and then knows it only as a vm.Machine.
// The machine runs in this process (the framework has a helper of its own), so
// it ends when dhowd does. The binary needs the entitlement
// com.apple.security.virtualization.
//
// Where things are: vz_darwin.go has the machine's life; config_darwin.go its
// devices; vsock_darwin.go the connections; bridge.go joins the framework's
// network device (datagrams) to the user-mode network (a stream, as QEMU
// speaks).
//
// What only a Mac can show, and no test of this repository has shown yet: that
// it boots; that a guest's reset ends the machine (a kernel panic is also
// noticed on the console); that half-close passes through the framework's
// sockets; that a connection of a machine that ends is reset and does not just
// end. The conformance suite of host/vm/vmtest will tell; internal/typecheck
// checks the types.
//
// The package must not know what runs in the guest.
package vz
