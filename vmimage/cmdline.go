package vmimage

import "strings"

// commonCmdline are kernel parameters for every driver. Each saves start-up
// work that a machine of ours has no use for; none weakens what protects a
// container (mitigations, seccomp, the LSMs stay as Debian has them).
var commonCmdline = []string{
	"quiet",                    // messages below warning stay off the (serial) console until init raises the level
	"panic=1",                  // a dead kernel ends the machine, which the host notices at once
	"printk.devkmsg=on",        // init's and the agent's lines are limited by init, not dropped by the kernel
	"random.trust_cpu=on",      // no wait for entropy
	"cryptomgr.notests",        // no self-tests of algorithms: 0.2 s under emulation
	"cgroup_no_v1=all",         // control groups v2 only
	"noresume",                 // nothing to resume from
	"nomodeset",                // no display
	"audit=0",                  // nobody reads it
	"rcupdate.rcu_expedited=1", // grace periods do not wait for ticks: mounts, namespaces and cgroups of a container come and go faster
	"init_on_alloc=1",          // Debian's default, stated
}

// archCmdline are further ones.
var archCmdline = map[string][]string{
	"amd64": {"8250.nr_uarts=1", "i8042.noaux", "i8042.nokbd"},
	"arm64": {},
}

// skippedInitcalls are start-up functions of the kernel that only test
// themselves or set up what a machine of ours never uses. initcall_blacklist is
// by name; a name that is not there is ignored.
var skippedInitcalls = []string{
	"crypto_kdf108_init", // does nothing but test itself
	"init_blk_tracer",    // blktrace's tracer
	// Parses the certificates that module signatures are checked with; the
	// image's modules carry none (see slim).
	"load_system_certificate_list",
}

// archSkipped are further ones.
var archSkipped = map[string][]string{
	// Routes the legacy interrupt pins of PCI devices by the firmware's tables.
	// All devices of our machines signal by MSI-X and need no pin, but each is
	// looked up when it is enabled, which interprets a loop of QEMU's DSDT: 0.1 s
	// per device under emulation. The bus itself is found and its windows are
	// assigned by other initcalls (acpi_init, pcibios_assign_resources).
	"amd64": {"pci_subsys_init"},
}

// cmdline is the manifest's kernel command line.
func cmdline(arch string) string {
	words := append(append([]string(nil), commonCmdline...), archCmdline[arch]...)
	skipped := append(append([]string(nil), skippedInitcalls...), archSkipped[arch]...)
	return strings.Join(append(words, "initcall_blacklist="+strings.Join(skipped, ",")), " ")
}
