//go:build linux

package boot

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A uevent is what the kernel says about one device (lib/kobject_uevent.c).
type uevent struct {
	Action, DevPath, Subsystem, DevName, DevType string
}

// parseUevent parses one message: "ACTION@DEVPATH\0KEY=VALUE\0…". ok is false
// for what is not the kernel's form (libudev's messages, say).
func parseUevent(b []byte) (u uevent, ok bool) {
	head, rest, _ := bytes.Cut(b, []byte{0})
	action, devpath, found := strings.Cut(string(head), "@")
	if !found || action == "" || devpath == "" {
		return uevent{}, false
	}
	u.Action, u.DevPath = action, devpath
	for kv := range bytes.SplitSeq(rest, []byte{0}) {
		k, v, _ := strings.Cut(string(kv), "=")
		switch k {
		case "SUBSYSTEM":
			u.Subsystem = v
		case "DEVNAME":
			u.DevName = v
		case "DEVTYPE":
			u.DevType = v
		}
	}
	return u, true
}

// ueventSocket is a netlink socket that hears the kernel's uevents.
type ueventSocket struct{ fd int }

func openUevents() (*ueventSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("uevent socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("uevent socket: %w", err)
	}
	return &ueventSocket{fd}, nil
}

func (s *ueventSocket) Close() { unix.Close(s.fd) }

// next waits for one uevent, at most d. ok is false if none came, and for
// messages that are not the kernel's.
func (s *ueventSocket) next(d time.Duration) (u uevent, ok bool, err error) {
	tv := unix.NsecToTimeval(int64(d))
	if d <= 0 {
		return uevent{}, false, os.ErrDeadlineExceeded
	}
	if err := unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return uevent{}, false, err
	}
	var buf [8192]byte
	n, from, err := unix.Recvfrom(s.fd, buf[:], 0)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return uevent{}, false, os.ErrDeadlineExceeded
	case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOBUFS): // ENOBUFS: some were lost; the caller looks again
		return uevent{}, false, nil
	case err != nil:
		return uevent{}, false, err
	}
	if nl, isNL := from.(*unix.SockaddrNetlink); !isNL || nl.Pid != 0 {
		return uevent{}, false, nil // not from the kernel
	}
	u, ok = parseUevent(buf[:n])
	return u, ok, nil
}

// diskBySerial returns the name (vda) of the whole disk whose serial number is
// serial, or "". virtio disks have it at serial, others at device/serial (NVMe)
// or in the vital product data page 0x80 (SCSI).
func diskBySerial(sysBlock, serial string) string {
	ents, err := os.ReadDir(sysBlock)
	if err != nil {
		return ""
	}
	for _, e := range ents {
		dir := sysBlock + "/" + e.Name()
		for _, f := range []string{"/serial", "/device/serial"} {
			if b, err := os.ReadFile(dir + f); err == nil && strings.TrimSpace(string(b)) == serial {
				return e.Name()
			}
		}
		if b, err := os.ReadFile(dir + "/device/vpd_pg80"); err == nil && len(b) > 4 &&
			strings.TrimSpace(strings.TrimRight(string(b[4:]), "\x00")) == serial {
			return e.Name()
		}
	}
	return ""
}

// waitDisk returns the device path of the disk with that serial number. It
// looks once, then again whenever the kernel announces a block device, for at
// most d.
func waitDisk(ev *ueventSocket, serial string, d time.Duration) (string, error) {
	end := uptime() + d
	for {
		if n := diskBySerial("/sys/block", serial); n != "" {
			return "/dev/" + n, nil
		}
		for {
			u, ok, err := ev.next(end - uptime())
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return "", fmt.Errorf("no disk with the serial number %s appeared within %v", serial, d)
			}
			if err != nil {
				return "", err
			}
			if !ok || u.Subsystem == "block" && u.Action == "add" {
				break
			}
		}
	}
}
