package qemu

import (
	"encoding/json"
	"fmt"
	"strings"

	"dhow/host/vm"
	"dhow/proto/control"
)

// guestMTU is the MTU of the network device in bytes: on a network that is a
// unix socket, big frames are fewer frames.
const guestMTU = 65520

// plan is all that the command line depends on: the machine's Config and what
// Start has found out and made.
type plan struct {
	cfg       vm.Config
	arch      string
	accel     acceleration
	firmware  string // "" is QEMU's own
	initrd    string // with boot.json
	vsock     string // socket of the vhost-user device
	qmpFD     int    // inherited socket
	noSandbox bool
}

// args returns QEMU's arguments. It is pure, and its results are in testdata.
func args(p plan) []string {
	emulated := p.accel.name == "tcg"
	a := []string{
		"-name", "dhow-" + escape(p.cfg.Name),
		"-nodefaults", "-no-user-config", "-display", "none", "-monitor", "none",
		// A guest that resets has panicked. QEMU waits at the guest's end until it
		// is told to quit, so that the event with the reason is never lost.
		"-action", "reboot=shutdown,shutdown=pause",
		"-S", // until the boot file is gone and the monitor answers
	}
	if !p.noSandbox {
		a = append(a, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	}
	a = append(a, machine(p)...)
	a = append(a,
		"-smp", fmt.Sprint(p.cfg.CPUs),
		"-m", fmt.Sprintf("size=%dk", p.cfg.Memory>>10),
		// A vhost-user device can share it.
		"-object", fmt.Sprintf("memory-backend-memfd,id=mem,size=%dk,share=on", p.cfg.Memory>>10),
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d", p.qmpFD),
		"-mon", "chardev=qmp,mode=control",
		"-chardev", "stdio,id=console,signal=off",
		"-serial", "chardev:console",
		"-kernel", p.cfg.Kernel, "-initrd", p.initrd, "-append", cmdline(p),
		"-chardev", "socket,id=vsock,path="+escape(p.vsock),
		"-device", "vhost-user-vsock-pci,chardev=vsock"+modern(p),
		"-device", "virtio-rng-pci"+modern(p),
		// Memory that the guest frees is the host's again.
		"-device", "virtio-balloon-pci,free-page-reporting=on"+modern(p),
	)
	if p.cfg.Root != "" {
		a = append(a, disk(p, "root", p.cfg.Root, control.SerialRoot, true)...)
	}
	if p.cfg.DataDisk != "" {
		a = append(a, disk(p, "data", p.cfg.DataDisk, control.SerialData, false)...)
	}
	if p.cfg.MAC != "" {
		a = append(a,
			"-netdev", "stream,id=net,server=off,addr.type=unix,addr.path="+escape(p.cfg.NetSocket),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=net,mac=%s,romfile=,host_mtu=%d%s", p.cfg.MAC, guestMTU, modern(p)))
	}
	if p.firmware != "" {
		a = append(a, "-bios", p.firmware)
	}
	if emulated {
		// One thread for all CPUs: with one for each, QEMU before 8.1 (and Debian 12
		// has 7.2) can keep a translation of code that the guest's kernel is just
		// patching, a breakpoint say, and both CPUs then execute it for ever: one
		// boot in some thirty hung. It costs a quarter of the speed.
		// The cache of translated code is 1 GiB if nothing else is said, and
		// stays resident.
		return append(a, "-accel", "tcg,thread=single,tb-size=256")
	}
	return append(a, "-accel", p.accel.name)
}

// machine chooses the board and the CPU. The boards lack what a container's
// host has no use for: each device that is not there need not be probed.
func machine(p plan) []string {
	board, cpu := "pc,usb=off,vmport=off,smbus=off,i8042=off", "max,la57=off"
	if p.arch == "arm64" {
		// pauth-impdef: the architected pointer authentication costs as much as
		// all the rest under emulation. its=off would cost MSI; gic-version=max
		// takes what the accelerator has.
		board, cpu = "virt,gic-version=max", "max,pauth-impdef=on"
	}
	if p.accel.name != "tcg" {
		cpu = "host"
	}
	return []string{"-machine", board + ",dump-guest-core=off,mem-merge=off,memory-backend=mem", "-cpu", cpu}
}

// modern are the properties of every virtio device: no legacy interface (an
// I/O port region and a second set of registers that nobody uses).
func modern(p plan) string {
	if p.arch == "amd64" {
		return ",disable-legacy=on"
	}
	return ""
}

func disk(p plan, id, file, serial string, readOnly bool) []string {
	node := map[string]any{
		"driver": "file", "node-name": id, "filename": file, "read-only": readOnly, "aio": "threads",
		// Write-back through the host's page cache; a flush of the guest is an
		// fdatasync of the host.
		"cache": map[string]any{"direct": false, "no-flush": false},
	}
	if !readOnly {
		node["discard"] = "unmap"
		node["detect-zeroes"] = "off"
	}
	b, err := json.Marshal(node)
	if err != nil {
		panic(err) // of strings and bools
	}
	return []string{"-blockdev", string(b), "-device", fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s%s", id, serial, modern(p))}
}

// cmdline are the kernel's parameters: what the board needs, then what the
// Config adds. For a parameter given twice the kernel takes the last.
func cmdline(p plan) string {
	console := "ttyS0"
	if p.arch == "arm64" {
		console = "ttyAMA0"
	}
	c := []string{"console=" + console, "panic=-1"} // a panic resets at once, which ends QEMU
	if p.accel.name == "tcg" {
		// Emulated code speculates on nothing of the guest's: the mitigations cost
		// and guard nothing.
		c = append(c, "mitigations=off")
		if p.arch == "amd64" {
			c = append(c,
				"no_timer_check", // a busy host fails the check, and the boot with it
				"noreplace-smp",  // patching running code is dear under emulation
				"tsc=reliable",   // one counter for all CPUs; a busy host fails the watchdog
			)
		}
	}
	if p.cfg.Cmdline != "" {
		c = append(c, p.cfg.Cmdline)
	}
	return strings.Join(c, " ")
}

// escape doubles commas, which separate QEMU's options.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
