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

// stage1Result is what stage 1 hands on.
type stage1Result struct {
	raw  []byte // content of /boot.json
	boot bootFile
	mods *modules     // the initramfs's; its files are in the root, too, under the same names
	link <-chan error // the vsock modules are loaded
	old  int          // the initramfs's root directory, to be emptied
}

// stage1 runs from the initramfs and leaves the process in the real root.
func (i *initProcess) stage1() (*stage1Result, error) {
	err := doMounts([]mount{
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755", true},
		{"proc", "/proc", "proc", hard, "", true},
		{"sysfs", "/sys", "sysfs", hard, "", true},
	})
	i.log.open()
	if err != nil {
		return nil, err
	}
	i.steps.mark("init")
	r := &stage1Result{}
	if r.raw, err = os.ReadFile(bootPath); err != nil {
		return nil, fmt.Errorf("the host gave no %s: %w", bootPath, err)
	}
	if err := os.Remove(bootPath); err != nil { // it holds the key of this boot
		return nil, err
	}
	if r.boot, err = parseBootFile(r.raw); err != nil {
		return nil, err
	}
	if r.mods, err = kernelModules(); err != nil {
		return nil, fmt.Errorf("modules of the initramfs: %w", err)
	}
	ev, err := openUevents()
	if err != nil {
		return nil, err
	}
	defer ev.Close()
	if cmdline, err := os.ReadFile("/proc/cmdline"); err == nil && strings.Contains(string(cmdline), "console=hvc") {
		if err := r.mods.Load(consoleModules...); err != nil {
			i.log.error("%v", err)
		}
	}
	// Side by side: the file system's module with the disk's, then vsock's with
	// all that follows.
	fs := make(chan error, 1)
	r.link = i.spawn("vsock", func() error {
		fs <- r.mods.Load(rootFSModules...)
		return r.mods.Load(linkModules...)
	})
	if err := r.mods.Load(rootDiskModules...); err != nil {
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
	if r.old, err = switchRoot(); err != nil {
		return nil, err
	}
	i.steps.mark("root")
	return r, nil
}

// switchRoot makes newRoot the root. It returns a descriptor of the initramfs,
// which is freed later: modules may be being loaded from it.
func switchRoot() (old int, err error) {
	old, err = unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for _, d := range []string{"/dev", "/proc", "/sys"} {
		if err := unix.Mount(d, newRoot+d, "", unix.MS_MOVE, ""); err != nil {
			return -1, fmt.Errorf("move %s: %w", d, err)
		}
	}
	if err := unix.Chdir(newRoot); err != nil {
		return -1, err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return -1, fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return -1, err
	}
	return old, unix.Chdir("/")
}

// emptyDir deletes all that is in the directory with that descriptor, not
// following anything to another file system.
func emptyDir(dir int) error {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return err
	}
	return emptyOn(dir, st.Dev)
}

func emptyOn(dir int, dev uint64) error {
	var errs []error
	names, err := dirNames(dir)
	errs = append(errs, err)
	for _, n := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, n, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Dev != dev {
			errs = append(errs, err)
			continue
		}
		flags := 0
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			flags = unix.AT_REMOVEDIR
			sub, err := unix.Openat(dir, n, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			errs = append(errs, emptyOn(sub, dev))
			unix.Close(sub)
		}
		// The root's mount point is busy, and stays, empty.
		if err := unix.Unlinkat(dir, n, flags); err != nil && err != unix.EBUSY {
			errs = append(errs, fmt.Errorf("%s: %w", n, err))
		}
	}
	return errors.Join(errs...)
}

func dirNames(dir int) ([]string, error) {
	buf := make([]byte, 8192)
	var names []string
	for {
		n, err := unix.ReadDirent(dir, buf)
		if err != nil || n <= 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}
