//go:build linux

package cgroup

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"sync"
	"unsafe"

	"dhow/internal/errdefs"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Version 2 has no devices controller: an eBPF program of type CGROUP_DEVICE
// decides (linux/bpf.h, struct bpf_cgroup_dev_ctx: access type, major, minor,
// each 32 bits; access type is access << 16 | device type).

// insn is one eBPF instruction.
type insn struct {
	code     uint8
	dst, src uint8
	off      int16
	imm      int32
}

const (
	opLoadWord = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	opMovImm   = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	opMovReg32 = unix.BPF_ALU | unix.BPF_MOV | unix.BPF_X
	opAndImm32 = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	opRshImm32 = unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K
	opJne      = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K
	opJneReg   = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_X
	opExit     = unix.BPF_JMP | unix.BPF_EXIT
)

// Registers: 0 result, 1 context, 2 device type, 3 access, 4 major, 5 minor, 6 scratch.

const (
	devBlock = 1
	devChar  = 2
	accMknod = 1
	accRead  = 2
	accWrite = 4
)

// deviceProgram compiles the rules. As in the spec, later ones win; so they
// are tested from the last to the first, and what none matches is denied.
func deviceProgram(rules []specs.LinuxDeviceCgroup) ([]insn, error) {
	p := []insn{
		{opLoadWord, 2, 1, 0, 0},
		{opMovReg32, 3, 2, 0, 0},
		{opAndImm32, 2, 0, 0, 0xffff},
		{opRshImm32, 3, 0, 0, 16},
		{opLoadWord, 4, 1, 4, 0},
		{opLoadWord, 5, 1, 8, 0},
	}
	for i := len(rules) - 1; i >= 0; i-- {
		r := &rules[i]
		var block []insn
		jump := func(in insn) { block = append(block, in) } // off is patched below
		switch r.Type {
		case "", "a":
		case "c", "u":
			jump(insn{opJne, 2, 0, 0, devChar})
		case "b":
			jump(insn{opJne, 2, 0, 0, devBlock})
		default:
			return nil, errdefs.New(errdefs.Invalid, "unknown device type %q", r.Type)
		}
		acc, err := access(r.Access)
		if err != nil {
			return nil, err
		}
		if acc != accMknod|accRead|accWrite {
			if r.Allow {
				// Everything asked for must be in the rule: asked & acc == asked.
				block = append(block, insn{opMovReg32, 6, 3, 0, 0}, insn{opAndImm32, 6, 0, 0, acc})
				jump(insn{opJneReg, 6, 3, 0, 0})
			} else {
				// Anything asked for that is in the rule is denied: skip if asked & acc == 0.
				block = append(block, insn{opMovReg32, 6, 3, 0, 0}, insn{opAndImm32, 6, 0, 0, acc})
				jump(insn{unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, 6, 0, 0, 0})
			}
		}
		for _, n := range []struct {
			reg uint8
			val *int64
		}{{4, r.Major}, {5, r.Minor}} {
			if n.val == nil || *n.val < 0 {
				continue
			}
			if *n.val > 1<<31-1 {
				return nil, errdefs.New(errdefs.Invalid, "device number %d is out of range", *n.val)
			}
			jump(insn{opJne, n.reg, 0, 0, int32(*n.val)})
		}
		verdict := int32(0)
		if r.Allow {
			verdict = 1
		}
		always := len(block) == 0
		block = append(block, insn{opMovImm, 0, 0, 0, verdict}, insn{opExit, 0, 0, 0, 0})
		for j := range block {
			if c := block[j].code; c&7 == unix.BPF_JMP && c != opExit {
				block[j].off = int16(len(block) - j - 1)
			}
		}
		p = append(p, block...)
		if always { // the earlier rules can never be reached, and the verifier refuses dead code
			return p, nil
		}
	}
	return append(p, insn{opMovImm, 0, 0, 0, 0}, insn{opExit, 0, 0, 0, 0}), nil
}

func access(s string) (acc int32, err error) {
	for _, c := range s {
		switch c {
		case 'r':
			acc |= accRead
		case 'w':
			acc |= accWrite
		case 'm':
			acc |= accMknod
		default:
			return 0, errdefs.New(errdefs.Invalid, "unknown device access %q", s)
		}
	}
	if acc == 0 {
		return 0, errdefs.New(errdefs.Invalid, "a device rule needs an access of r, w or m")
	}
	return acc, nil
}

// assemble gives the instructions as the kernel reads them.
func assemble(p []insn) []byte {
	b := make([]byte, 0, 8*len(p))
	for _, i := range p {
		b = append(b, i.code, i.src<<4|i.dst)
		b = binary.NativeEndian.AppendUint16(b, uint16(i.off))
		b = binary.NativeEndian.AppendUint32(b, uint32(i.imm))
	}
	return b
}

// programs holds the loaded programs by their content: most containers have
// the same rules, and loading runs the verifier.
var programs = struct {
	sync.Mutex
	fd map[[sha256.Size]byte]int
}{fd: map[[sha256.Size]byte]int{}}

// maxPrograms bounds the cache.
const maxPrograms = 64

// AttachDevices puts the cgroup under the rules. It can be done once: the
// kernel lets further programs only narrow what is allowed. Rules that allow
// everything need no program.
func (c *Cgroup) AttachDevices(rules []specs.LinuxDeviceCgroup) error {
	if c.devices {
		return errdefs.New(errdefs.Unimplemented, "the device rules of a running container cannot be changed")
	}
	p, err := deviceProgram(rules)
	if err != nil || allowsAll(rules) {
		return err
	}
	code := assemble(p)
	key := sha256.Sum256(code)
	programs.Lock()
	defer programs.Unlock()
	fd, ok := programs.fd[key]
	if !ok {
		if fd, err = loadProgram(code); err != nil {
			return fmt.Errorf("load the device rules: %w", err)
		}
		if len(programs.fd) >= maxPrograms {
			for k, old := range programs.fd {
				_ = unix.Close(old) // attached ones stay loaded
				delete(programs.fd, k)
			}
		}
		programs.fd[key] = fd
	}
	if err := attachProgram(c.FD(), fd); err != nil {
		return fmt.Errorf("attach the device rules to %s: %w", c.Path(), err)
	}
	c.devices = true
	return nil
}

// allowsAll reports whether the last rule, which decides, allows everything.
func allowsAll(rules []specs.LinuxDeviceCgroup) bool {
	r := rules[len(rules)-1]
	acc, err := access(r.Access)
	any := func(n *int64) bool { return n == nil || *n < 0 }
	return err == nil && r.Allow && (r.Type == "" || r.Type == "a") && any(r.Major) && any(r.Minor) && acc == accMknod|accRead|accWrite
}

func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		r, _, e := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
		switch e {
		case 0:
			return int(r), nil
		case unix.EINTR, unix.EAGAIN: // the verifier was interrupted by a signal
			continue
		}
		return -1, e
	}
}

func loadProgram(code []byte) (int, error) {
	license := []byte("GPL\x00")
	attr := struct {
		progType, insnCnt  uint32
		insns, license     unsafe.Pointer
		logLevel, logSize  uint32
		logBuf             uint64
		kernVersion, flags uint32
		name               [16]byte
		ifindex, attach    uint32
	}{
		progType: unix.BPF_PROG_TYPE_CGROUP_DEVICE,
		insnCnt:  uint32(len(code) / 8),
		insns:    unsafe.Pointer(&code[0]),
		license:  unsafe.Pointer(&license[0]),
		name:     [16]byte{'d', 'h', 'o', 'w', '_', 'd', 'e', 'v'},
		attach:   unix.BPF_CGROUP_DEVICE,
	}
	return bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
}

// attachProgram attaches the program beside those that are there and those of
// cgroups above and below: all of them must allow an access.
func attachProgram(cgroup, prog int) error {
	attr := struct{ targetFD, attachFD, attachType, flags, replace uint32 }{
		targetFD: uint32(cgroup), attachFD: uint32(prog), attachType: unix.BPF_CGROUP_DEVICE, flags: unix.BPF_F_ALLOW_MULTI,
	}
	_, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}
