//go:build linux

package boot

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Serial numbers of the disks, as in proto/control.
const (
	serialRoot = "dhow-root"
	serialData = "dhow-data"
)

// Modules by purpose. What they need comes with them (modules.dep).
var (
	rootDiskModules = []string{"virtio_pci", "virtio_blk"}
	rootFSModules   = []string{"erofs"}
	consoleModules  = []string{"virtio_console"} // for console=hvc0
	linkModules     = []string{"vmw_vsock_virtio_transport"}
	networkModules  = []string{"virtio_net"}
	// containerModules are loaded while the agent starts, so that the first
	// container does not wait for the kernel to ask for them one by one.
	containerModules = []string{
		"overlay", "veth", "bridge", "nf_tables", "nft_chain_nat", "nft_masq", "nft_ct", "nft_nat", "nft_reject_inet",
	}
)

// Mount points in the initramfs (the builder makes them).
const (
	newRoot  = "/root"
	bootPath = "/boot.json"
)

// diskWait bounds the wait for a disk. A driver announces its disks while it is
// loaded, so the wait is for a device that is attached late, or not at all.
const diskWait = 10 * time.Second

// stage1 runs from the initramfs and leaves the process in the real root. It
// returns the raw content of /boot.json.
func (i *initProcess) stage1() (raw []byte, err error) {
	// The messages of a failed mount are of more use than its panic: go on.
	err = doMounts([]mount{
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755", true},
		{"proc", "/proc", "proc", hard, "", true},
		{"sysfs", "/sys", "sysfs", hard, "", true},
	})
	i.log.open()
	if err != nil {
		return nil, err
	}
	i.steps.mark("init")
	ev, err := openUevents()
	if err != nil {
		return nil, err
	}
	defer ev.Close()
	mods, err := kernelModules()
	if err != nil {
		return nil, fmt.Errorf("modules of the initramfs: %w", err)
	}
	if cmdline, err := os.ReadFile("/proc/cmdline"); err == nil && strings.Contains(string(cmdline), "console=hvc") {
		if err := mods.Load(consoleModules...); err != nil {
			i.log.error("%v", err)
		}
	}
	fs := i.spawn("root file system's modules", func() error { return mods.Load(rootFSModules...) })
	if err := mods.Load(rootDiskModules...); err != nil {
		// Another hypervisor's disk may need none of these: the wait decides.
		i.log.error("%v", err)
	}
	dev, err := waitDisk(ev, serialRoot, diskWait)
	if err != nil {
		return nil, err
	}
	if err := <-fs; err != nil {
		return nil, err
	}
	if err := unix.Mount(dev, newRoot, "erofs", unix.MS_RDONLY|unix.MS_NODEV, ""); err != nil {
		return nil, fmt.Errorf("mount the root disk %s: %w", dev, err)
	}
	i.steps.mark("root disk")
	if raw, err = os.ReadFile(bootPath); err != nil {
		return nil, fmt.Errorf("the host gave no %s: %w", bootPath, err)
	}
	if err := switchRoot(); err != nil {
		return nil, err
	}
	i.steps.mark("root")
	return raw, nil
}

// switchRoot makes newRoot the root and frees the initramfs, the key of this
// boot with it.
func switchRoot() error {
	for _, d := range []string{"/dev", "/proc", "/sys"} {
		if err := unix.Mount(d, newRoot+d, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", d, err)
		}
	}
	if err := emptyRoot(); err != nil {
		return fmt.Errorf("empty the initramfs: %w", err)
	}
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}

// emptyRoot deletes what is in the initramfs; not what is mounted there.
func emptyRoot() error {
	ents, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range ents {
		if name := "/" + e.Name(); name != newRoot {
			errs = append(errs, os.RemoveAll(name))
		}
	}
	return errors.Join(errs...)
}
