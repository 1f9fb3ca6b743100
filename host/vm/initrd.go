package vm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
)

// BootFile is the name of Config.Boot in the initramfs.
const BootFile = "boot.json"

// WriteInitrd makes dst a copy of the initramfs src with a cpio archive after
// it that holds boot as /boot.json (mode 0600 in the guest). The kernel unpacks the
// archives of an initramfs one after the other. dst is made with mode 0600; it must
// not exist. On an error dst does not exist.
func WriteInitrd(dst, src string, boot []byte) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := out.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			err = errors.Join(fmt.Errorf("write %s: %w", dst, err), os.Remove(dst))
		}
	}()
	n, err := io.Copy(out, in)
	if err != nil {
		return err
	}
	// The next archive must start at a multiple of 4; the kernel skips zeros.
	var b bytes.Buffer
	b.Write(make([]byte, -n&3))
	appendNewc(&b, BootFile, boot)
	_, err = out.Write(b.Bytes())
	return err
}

// appendNewc writes a cpio archive of one regular file in "new ASCII" format
// (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
func appendNewc(b *bytes.Buffer, name string, data []byte) {
	start := b.Len()
	entry := func(name string, mode, nlink int, data []byte) {
		// magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor,
		// rdevmajor, rdevminor, namesize (with the NUL), check
		fmt.Fprintf(b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
			0, mode, 0, 0, nlink, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name)
		b.WriteByte(0)
		pad(b, start)
		b.Write(data)
		pad(b, start)
	}
	entry(name, 0o100600, 1, data)
	entry("TRAILER!!!", 0, 1, nil)
}

func pad(b *bytes.Buffer, start int) { b.Write(make([]byte, -(b.Len()-start)&3)) }
