package vz

import (
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/Code-Hex/vz/v3"

	"dhow/proto/control"
)

// mtu of the network device in bytes, the user-mode network's.
const mtu = 65520

// Buffers of the network's datagram sockets in bytes: the framework wants room
// for whole frames, and four times as much for receiving as for sending.
const (
	sendBuffer    = 1 << 20
	receiveBuffer = 4 * sendBuffer
)

// configure describes the machine to the framework. console is the write end
// of a pipe, network a datagram socket or nil.
func (m *Machine) configure(initrd string, consoleIn, console, network *os.File) (*vz.VirtualMachineConfiguration, error) {
	loader, err := vz.NewLinuxBootLoader(m.cfg.Kernel, vz.WithInitrd(initrd),
		vz.WithCommandLine("console=hvc0 panic=-1 "+m.cfg.Cmdline))
	if err != nil {
		return nil, err
	}
	c, err := vz.NewVirtualMachineConfiguration(loader, uint(m.cfg.CPUs), uint64(m.cfg.Memory))
	if err != nil {
		return nil, err
	}
	platform, err := vz.NewGenericPlatformConfiguration()
	if err != nil {
		return nil, err
	}
	c.SetPlatformVirtualMachineConfiguration(platform)

	var disks []vz.StorageDeviceConfiguration
	for _, d := range []struct {
		file, serial string
		readOnly     bool
	}{{m.cfg.Root, control.SerialRoot, true}, {m.cfg.DataDisk, control.SerialData, false}} {
		if d.file == "" {
			continue
		}
		disk, err := newDisk(d.file, d.serial, d.readOnly)
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", d.file, err)
		}
		disks = append(disks, disk)
	}
	c.SetStorageDevicesVirtualMachineConfiguration(disks)

	serial, err := vz.NewFileHandleSerialPortAttachment(consoleIn, console)
	if err != nil {
		return nil, err
	}
	port, err := vz.NewVirtioConsoleDeviceSerialPortConfiguration(serial)
	if err != nil {
		return nil, err
	}
	c.SetSerialPortsVirtualMachineConfiguration([]*vz.VirtioConsoleDeviceSerialPortConfiguration{port})

	socket, err := vz.NewVirtioSocketDeviceConfiguration()
	if err != nil {
		return nil, err
	}
	c.SetSocketDevicesVirtualMachineConfiguration([]vz.SocketDeviceConfiguration{socket})

	entropy, err := vz.NewVirtioEntropyDeviceConfiguration()
	if err != nil {
		return nil, err
	}
	c.SetEntropyDevicesVirtualMachineConfiguration([]*vz.VirtioEntropyDeviceConfiguration{entropy})

	balloon, err := vz.NewVirtioTraditionalMemoryBalloonDeviceConfiguration()
	if err != nil {
		return nil, err
	}
	c.SetMemoryBalloonDevicesVirtualMachineConfiguration([]vz.MemoryBalloonDeviceConfiguration{balloon})

	if network != nil {
		card, err := newNetwork(network, m.cfg.MAC)
		if err != nil {
			return nil, err
		}
		c.SetNetworkDevicesVirtualMachineConfiguration([]*vz.VirtioNetworkDeviceConfiguration{card})
	}
	if ok, err := c.Validate(); err != nil || !ok {
		return nil, fmt.Errorf("the framework refuses the machine: %w", err)
	}
	return c, nil
}

func newDisk(file, serial string, readOnly bool) (*vz.VirtioBlockDeviceConfiguration, error) {
	// Fsync: the guest's flush reaches the disk's controller, as on QEMU; Full
	// would empty the controller's cache each time, which no other driver does.
	a, err := vz.NewDiskImageStorageDeviceAttachmentWithCacheAndSync(file, readOnly,
		vz.DiskImageCachingModeCached, vz.DiskImageSynchronizationModeFsync)
	if err != nil {
		return nil, err
	}
	d, err := vz.NewVirtioBlockDeviceConfiguration(a)
	if err != nil {
		return nil, err
	}
	return d, d.SetBlockDeviceIdentifier(serial)
}

func newNetwork(socket *os.File, mac string) (*vz.VirtioNetworkDeviceConfiguration, error) {
	a, err := vz.NewFileHandleNetworkDeviceAttachment(socket)
	if err != nil {
		return nil, err
	}
	if err := a.SetMaximumTransmissionUnit(mtu); err != nil {
		return nil, err
	}
	d, err := vz.NewVirtioNetworkDeviceConfiguration(a)
	if err != nil {
		return nil, err
	}
	hw, err := net.ParseMAC(mac)
	if err != nil {
		return nil, err
	}
	address, err := vz.NewMACAddress(hw)
	if err != nil {
		return nil, err
	}
	d.SetMACAddress(address)
	return d, nil
}

// networkPair returns the two ends of a datagram connection: the framework's,
// and ours.
func networkPair() (*os.File, net.Conn, error) {
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs, ours := os.NewFile(uintptr(fds[0]), "network"), os.NewFile(uintptr(fds[1]), "network")
	defer ours.Close()
	for _, fd := range fds {
		for opt, size := range map[int]int{syscall.SO_SNDBUF: sendBuffer, syscall.SO_RCVBUF: receiveBuffer} {
			if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, opt, size); err != nil {
				_ = theirs.Close()
				return nil, nil, os.NewSyscallError("setsockopt", err)
			}
		}
	}
	c, err := net.FileConn(ours)
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return theirs, c, nil
}
