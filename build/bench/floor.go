//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"dhow/host/vm"
	"dhow/host/vm/qemu"
)

// mark is what the floor's init prints.
const mark = "FLOOR-INIT\n"

// floorInit is the smallest program that can be init, for amd64: it writes mark
// to its standard output and sleeps. An ELF header, one program header, the
// code, the text.
func floorInit() ([]byte, error) {
	if runtime.GOARCH != "amd64" {
		return nil, errors.New("the floor's init is written for amd64")
	}
	const base, headers = 0x400000, 64 + 56
	code := []byte{
		0xb8, 1, 0, 0, 0, // mov eax, 1 (write)
		0xbf, 1, 0, 0, 0, // mov edi, 1
		0x48, 0x8d, 0x35, 0, 0, 0, 0, // lea rsi, [rip+text]
		0xba, byte(len(mark)), 0, 0, 0, // mov edx, len
		0x0f, 0x05, // syscall
		0xb8, 34, 0, 0, 0, // mov eax, 34 (pause)
		0x0f, 0x05, // syscall
		0xeb, 0xf7, // jmp to the mov before
	}
	binary.LittleEndian.PutUint32(code[13:], uint32(len(code)-17))
	size := uint64(headers + len(code) + len(mark))
	var b bytes.Buffer
	b.Write([]byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	for _, v := range []any{
		uint16(2), uint16(62), uint32(1), uint64(base + headers), uint64(64), uint64(0), uint32(0), uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0),
		uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(0x1000),
	} {
		if err := binary.Write(&b, binary.LittleEndian, v); err != nil {
			return nil, err
		}
	}
	b.Write(code)
	b.WriteString(mark)
	return b.Bytes(), nil
}

// cpio returns a newc archive of one executable named init.
func cpio(data []byte) []byte {
	var b bytes.Buffer
	entry := func(name string, mode int, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", 0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		b.WriteString(name + "\x00")
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
		b.Write(data)
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
	}
	entry("init", 0o100755, data)
	entry("TRAILER!!!", 0, nil)
	return b.Bytes()
}

// floor boots the image's kernel with the same devices and parameters as dhow
// does, to an init that only says that it runs.
type floor struct {
	dir string
	cfg vm.Config
}

func newFloor(dir string, cfg vm.Config) (*floor, error) {
	code, err := floorInit()
	if err != nil {
		return nil, err
	}
	cfg.Initrd = filepath.Join(dir, "floor-initrd")
	cfg.Dir = filepath.Join(dir, "floor")
	cfg.Log = slog.New(slog.DiscardHandler)
	return &floor{dir, cfg}, os.WriteFile(cfg.Initrd, cpio(code), 0o600)
}

func (f *floor) run(ctx context.Context) (sample, error) {
	console := filepath.Join(f.cfg.Dir, "console.log")
	if err := os.Remove(console); err != nil && !errors.Is(err, os.ErrNotExist) {
		return sample{}, err
	}
	start := time.Now()
	m := qemu.New(f.cfg, qemu.Options{})
	defer m.Kill()
	if err := m.Start(ctx); err != nil {
		return sample{}, err
	}
	for {
		b, err := os.ReadFile(console)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return sample{}, err
		}
		if bytes.Contains(b, []byte(mark[:len(mark)-1])) {
			break
		}
		select {
		case <-m.Done():
			return sample{}, fmt.Errorf("the bare kernel did not reach its init: %w", m.Err())
		case <-ctx.Done():
			return sample{}, ctx.Err()
		case <-time.After(time.Millisecond): // a bench may poll; the file is the only sign
		}
	}
	s := sample{wall: time.Since(start)}
	s.cpu = childCPU(os.Getpid())
	return s, nil
}
