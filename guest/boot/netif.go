//go:build linux

package boot

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ifreq is struct ifreq: a name and a union of 24 bytes.
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data [24]byte
}

// rtentry is struct rtentry of 64-bit kernels (include/uapi/linux/route.h).
type rtentry struct {
	_                     uint64
	dst, gateway, genmask unix.RawSockaddrInet4
	flags                 uint16
	_                     int16
	_                     uint64
	_                     uint64
	metric                int16
	_                     [6]byte
	dev                   *byte
	mtu, window           uint64
	irtt                  uint16
	_                     [6]byte
}

func newIfreq(name string) *ifreq {
	r := &ifreq{}
	copy(r.name[:unix.IFNAMSIZ-1], name)
	return r
}

func (r *ifreq) setAddr(a netip.Addr) {
	sa := (*unix.RawSockaddrInet4)(unsafe.Pointer(&r.data[0]))
	*sa = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.As4()}
}

func (r *ifreq) int32() *int32  { return (*int32)(unsafe.Pointer(&r.data[0])) }
func (r *ifreq) flags() *uint16 { return (*uint16)(unsafe.Pointer(&r.data[0])) }

func ioctl(fd int, req uintptr, arg unsafe.Pointer, what string) error {
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), req, uintptr(arg)); e != 0 {
		return fmt.Errorf("%s: %w", what, e)
	}
	return nil
}

// linkUp sets the interface's IFF_UP.
func linkUp(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r := newIfreq(name)
	*r.flags() = unix.IFF_UP
	return ioctl(fd, unix.SIOCSIFFLAGS, unsafe.Pointer(r), name+" up")
}

// linkByMAC returns the name of the network interface with that hardware
// address; the first that is not lo if mac is "".
func linkByMAC(sysNet, mac string) (string, error) {
	ents, err := os.ReadDir(sysNet)
	if err != nil {
		return "", err
	}
	for _, e := range ents {
		if e.Name() == "lo" {
			continue
		}
		b, err := os.ReadFile(sysNet + "/" + e.Name() + "/address")
		if err == nil && (mac == "" || strings.EqualFold(strings.TrimSpace(string(b)), mac)) {
			return e.Name(), nil
		}
	}
	return "", fmt.Errorf("no network device with the address %s", mac)
}

// configure gives the device its address, MTU and default route. The host's
// user-mode network speaks IPv4.
func configure(n bootUplink) error {
	prefix, err := netip.ParsePrefix(n.Address)
	if err != nil || !prefix.Addr().Is4() {
		return fmt.Errorf("network address %q is not an IPv4 address with its prefix length", n.Address)
	}
	name, err := linkByMAC("/sys/class/net", n.MAC)
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if n.MTU > 0 {
		r := newIfreq(name)
		*r.int32() = int32(n.MTU)
		if err := ioctl(fd, unix.SIOCSIFMTU, unsafe.Pointer(r), fmt.Sprintf("%s MTU %d", name, n.MTU)); err != nil {
			return err
		}
	}
	r := newIfreq(name)
	r.setAddr(prefix.Addr())
	if err := ioctl(fd, unix.SIOCSIFADDR, unsafe.Pointer(r), name+" address"); err != nil {
		return err
	}
	r = newIfreq(name)
	r.setAddr(mask(prefix.Bits()))
	if err := ioctl(fd, unix.SIOCSIFNETMASK, unsafe.Pointer(r), name+" mask"); err != nil {
		return err
	}
	r = newIfreq(name)
	*r.flags() = unix.IFF_UP
	if err := ioctl(fd, unix.SIOCSIFFLAGS, unsafe.Pointer(r), name+" up"); err != nil {
		return err
	}
	if n.Gateway == "" {
		return nil
	}
	gw, err := netip.ParseAddr(n.Gateway)
	if err != nil || !gw.Is4() {
		return fmt.Errorf("network gateway %q is not an IPv4 address", n.Gateway)
	}
	rt := rtentry{
		dst:     unix.RawSockaddrInet4{Family: unix.AF_INET},
		genmask: unix.RawSockaddrInet4{Family: unix.AF_INET},
		gateway: unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: gw.As4()},
		flags:   unix.RTF_UP | unix.RTF_GATEWAY,
	}
	err = ioctl(fd, unix.SIOCADDRT, unsafe.Pointer(&rt), "default route")
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	return err
}

func mask(bits int) netip.Addr {
	m := ^uint32(0) << (32 - bits)
	return netip.AddrFrom4([4]byte{byte(m >> 24), byte(m >> 16), byte(m >> 8), byte(m)})
}

// resolvConf is /run/resolv.conf, which /etc/resolv.conf points to.
func resolvConf(n *bootUplink) string {
	if n == nil || n.DNS == "" {
		return "# this machine has no network\n"
	}
	return "nameserver " + n.DNS + "\n"
}
