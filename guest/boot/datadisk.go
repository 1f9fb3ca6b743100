//go:build linux

package boot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// e2fsck's exit status is a sum of these (e2fsck(8)).
const (
	fsckCorrected   = 1
	fsckReboot      = 2
	fsckUncorrected = 4
)

// A tool runs one of e2fsprogs' programs and returns its exit status; its
// output goes to the console.
type tool func(argv ...string) (status int, err error)

// dataDisk brings the disk dev to a state in which it can be mounted, and
// mounts it on dir. It never writes to a disk that holds something foreign.
func dataDisk(log *kmsg, run tool, dev, dir, tmp string) error {
	f, err := os.OpenFile(dev, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("%s: size: %w", dev, err)
	}
	// A file system shows in the first blocks; only what has none is read as far
	// as blankSize.
	head, err := readHead(f, min(size, sbOffset+sbSize))
	if err == nil && !hasMagic(head) {
		head, err = readHead(f, size)
	}
	if err != nil {
		return fmt.Errorf("%s: read: %w", dev, err)
	}
	act, sb, why := decide(head)
	switch act {
	case actRefuse:
		return fmt.Errorf("the data disk (%d bytes) is left untouched, because %s; give the machine another disk, or empty this one", size, why)
	case actFormat:
		log.notice("formatting the data disk (%d bytes): %s", size, why)
		if err := format(run, f, size, tmp); err != nil {
			return fmt.Errorf("format the data disk: %w", err)
		}
		sb = superblock{}
	case actCheck:
		log.notice("checking the data disk: %s", why)
		if err := check(log, run, dev); err != nil {
			return err
		}
		sb = superblock{} // its size may have changed
	}
	if err := mountData(dev, dir); err != nil {
		if act != actMount {
			return fmt.Errorf("mount the data disk: %w", err)
		}
		// The superblock said clean and the kernel disagrees: check, once.
		log.error("the data disk cannot be mounted (%v); checking it", err)
		if err := check(log, run, dev); err != nil {
			return err
		}
		if err := mountData(dev, dir); err != nil {
			return fmt.Errorf("mount the data disk after a check: %w", err)
		}
	}
	if sb.Blocks == 0 {
		if head, err = readHead(f, sbOffset+sbSize); err != nil {
			return fmt.Errorf("%s: read: %w", dev, err)
		}
		if sb, err = parseSuperblock(head); err != nil {
			return fmt.Errorf("%s: %w", dev, err)
		}
	}
	if want := size / sb.BlockSize; want > sb.Blocks {
		log.notice("growing the data disk's file system from %d to %d bytes", sb.Size(), want*sb.BlockSize)
		if err := resize(dir, want); err != nil {
			// It works at its old size.
			log.error("the file system could not be grown: %v", err)
		}
	}
	return nil
}

func readHead(f *os.File, size int64) ([]byte, error) {
	head := make([]byte, min(size, blankSize))
	_, err := f.ReadAt(head, 0)
	return head, err
}

func mountData(dev, dir string) error {
	// discard: what containers and images free goes back to the host's disk.
	return unix.Mount(dev, dir, "ext4", unix.MS_NOATIME, "discard")
}

// check repairs the file system on dev: first what is safe without asking, and
// only if that gives up, everything.
func check(log *kmsg, run tool, dev string) error {
	status, err := run("/sbin/e2fsck", "-p", dev)
	if err == nil && status&fsckUncorrected != 0 {
		log.error("e2fsck -p gave up (status %d); repairing with e2fsck -y", status)
		status, err = run("/sbin/e2fsck", "-f", "-y", dev)
	}
	if err != nil {
		return fmt.Errorf("e2fsck: %w", err)
	}
	if status&^(fsckCorrected|fsckReboot) != 0 {
		return fmt.Errorf("the data disk's file system could not be repaired (e2fsck ended with status %d); its output is on the console", status)
	}
	return nil
}

// format makes a file system on the disk so that a crash at any instant
// leaves a disk that is formatted again at the next boot, or a finished one:
// mke2fs writes into a sparse file in memory, with a label that means
// "unfinished"; its parts beyond the first MiB are copied first, then the
// superblock, then the rest, and at last the label is changed.
func format(run tool, disk *os.File, size int64, tmp string) error {
	name := filepath.Join(tmp, "format.img")
	img, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer img.Close()
	defer os.Remove(name)
	if err := img.Truncate(size); err != nil {
		return err
	}
	// 64bit: can grow beyond 16 TiB. assume_storage_prezeroed: the host made
	// the disk as a hole, so nothing has to zero inode tables, now or in the
	// background, which would also allocate them on the host.
	status, err := run("/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-O", "metadata_csum,64bit", "-m", "0",
		"-E", "nodiscard,assume_storage_prezeroed=1", "-L", labelBeingFormed, name)
	if err != nil {
		return fmt.Errorf("mke2fs: %w", err)
	}
	if status != 0 {
		return fmt.Errorf("mke2fs ended with status %d; its output is on the console", status)
	}
	if err := copyData(disk, img, blankSize, size); err != nil {
		return err
	}
	const block = 4096
	head := make([]byte, block)
	if _, err := img.ReadAt(head, 0); err != nil {
		return err
	}
	for _, step := range []func() error{
		func() error { return writeSync(disk, head) },
		func() error { return copyData(disk, img, block, blankSize) },
		func() error { setLabel(head, labelData); return writeSync(disk, head) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func writeSync(disk *os.File, head []byte) error {
	if _, err := disk.WriteAt(head, 0); err != nil {
		return err
	}
	return disk.Sync()
}

// copyData copies what img holds between from and to (holes are skipped) and
// syncs the disk.
func copyData(disk, img *os.File, from, to int64) error {
	buf := make([]byte, 1<<20)
	for from < to {
		start, err := img.Seek(from, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && start >= to {
			break
		}
		if err != nil {
			return err
		}
		end, err := img.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		for end = min(end, to); start < end; {
			n, err := img.ReadAt(buf[:min(int64(len(buf)), end-start)], start)
			if n == 0 {
				return err
			}
			if _, err := disk.WriteAt(buf[:n], start); err != nil {
				return err
			}
			start += int64(n)
		}
		from = end
	}
	return disk.Sync()
}

// resize grows the mounted file system to that many blocks.
func resize(dir string, blocks int64) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const ext4IOCResizeFS = 0x40086610 // _IOW('f', 16, __u64), fs/ext4/ext4.h
	n := uint64(blocks)
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), ext4IOCResizeFS, uintptr(unsafe.Pointer(&n))); e != 0 {
		return e
	}
	return nil
}

// submounts returns the mount points at and below dir in /proc/self/mountinfo's
// text, the last mounted first.
func submounts(mountinfo, dir string) []string {
	var out []string
	for line := range strings.SplitSeq(mountinfo, "\n") {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		p := unescapeMount(f[4])
		if p == dir || strings.HasPrefix(p, dir+"/") {
			out = append(out, p)
		}
	}
	for i, j := 0, len(out)-1; i < j; i, j = i+1, j-1 {
		out[i], out[j] = out[j], out[i]
	}
	return out
}

// unescapeMount undoes mountinfo's \ooo for space, tab, newline, backslash.
func unescapeMount(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
