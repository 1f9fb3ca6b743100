//go:build linux

package main

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The rows. A peer's row has the same name behind peerPrefix.
const (
	rowFloor   = "bare kernel → static init"
	rowBoot    = "VM off → API answers"
	rowBootRun = "VM off → run --rm has printed"
	rowRun     = "run --rm true"
	rowRunNone = "run --rm --network none true"
	rowExec    = "exec true"
	rowVersion = "version"
	rowPing    = "API round trip over vsock (median of 200)"
	rowOut     = "64 MiB out of a container (exec)" // an exec's output is not logged
	rowIn      = "64 MiB into a container (exec -i)"

	peerPrefix = "peer: "
)

// boots are the rows whose ratio to the bare kernel's boot says something.
var boots = map[string]bool{rowBoot: true, rowBootRun: true}

const (
	streamBytes = 64 << 20
	execTarget  = "bench-exec"
)

func (b *bench) prepareWarm() error {
	_, err := b.dhow("run", "--rm", hello, "true") // the first start loads modules
	return err
}

// warm measures what needs no boot, on our machine.
func (b *bench) warm() error {
	pid := b.qemu()
	run := func(args ...string) func() error {
		return func() error { _, err := b.dhow(args...); return err }
	}
	if err := b.dhowUntimed("run", "-d", "--name", execTarget, hello, "sleep", "3600"); err != nil {
		return err
	}
	defer func() { _ = b.dhowUntimed("rm", "-f", execTarget) }()
	return errors.Join(
		b.timed(rowRun, pid, run("run", "--rm", hello, "true")),
		b.timed(rowRunNone, pid, run("run", "--rm", "--network", "none", hello, "true")),
		b.timed(rowExec, pid, run("exec", execTarget, "true")),
		b.timed(rowVersion, pid, run("version")),
		b.ping(),
		b.timed(rowOut, pid, func() error {
			out, err := b.dhow("exec", execTarget, "dd", "if=/dev/zero", "bs=65536", "count="+strconv.Itoa(streamBytes>>16))
			if err == nil && len(out) < streamBytes-1 {
				err = fmt.Errorf("%d bytes arrived", len(out))
			}
			return err
		}),
		b.timed(rowIn, pid, func() error {
			out, err := b.command(io.LimitReader(zeros{}, streamBytes), filepath.Join(b.bin, "dhow"), "exec", "-i", execTarget, "wc", "-c")
			if err == nil && out != strconv.Itoa(streamBytes) {
				err = fmt.Errorf("%s bytes arrived", out)
			}
			return err
		}),
	)
}

func (b *bench) dhowUntimed(args ...string) error { _, err := b.dhow(args...); return err }

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// ping times requests on one connection: HTTP, vsock and the agent.
func (b *bench) ping() error {
	c := b.docker()
	defer c.CloseIdleConnections()
	var took []time.Duration
	for range 200 {
		start := time.Now()
		resp, err := c.Get("http://docker/_ping")
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("ping: %s, %w", resp.Status, err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.row(rowPing).add(sample{wall: took[len(took)/2]})
	return nil
}

// peerRound measures the same on the peer, with our command line as its client.
func (b *bench) peerRound() error {
	if b.peerStart != "" {
		start := time.Now()
		if _, err := b.command(nil, "sh", "-c", b.peerStart); err != nil {
			return err
		}
		b.row(peerPrefix + rowBoot).add(sample{time.Since(start), processCPU(b.peerProcess())})
		defer func() { _, _ = b.command(nil, "sh", "-c", b.peerStop) }()
	}
	if err := b.preparePeer(); err != nil {
		return err
	}
	pid := b.peerProcess()
	run := func(args ...string) func() error {
		return func() error { _, err := b.onPeer(nil, args...); return err }
	}
	if err := run("run", "-d", "--name", execTarget, peerImage, "sleep", "3600")(); err != nil {
		return err
	}
	defer func() { _ = run("rm", "-f", execTarget)() }()
	return errors.Join(
		b.timed(peerPrefix+rowRun, pid, run("run", "--rm", peerImage, "true")),
		b.timed(peerPrefix+rowRunNone, pid, run("run", "--rm", "--network", "none", peerImage, "true")),
		b.timed(peerPrefix+rowExec, pid, run("exec", execTarget, "true")),
		b.timed(peerPrefix+rowVersion, pid, run("version")),
	)
}

const peerImage = "dhow-bench"

func (b *bench) peerProcess() int {
	if b.peerPIDFile == "" {
		return b.peerPID
	}
	data, err := os.ReadFile(b.peerPIDFile)
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return pid
}

func (b *bench) onPeer(stdin io.Reader, args ...string) (string, error) {
	return b.command(stdin, filepath.Join(b.bin, "dhow"), append([]string{"-H", b.peer}, args...)...)
}

// preparePeer gives the peer the same busybox as an image.
func (b *bench) preparePeer() error {
	if _, err := b.onPeer(nil, "image", "inspect", peerImage); err == nil {
		return nil
	}
	busybox, err := os.ReadFile(filepath.Join(b.image, "busybox"))
	if err != nil {
		return err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []tar.Header{
		{Name: "bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(busybox))},
		{Name: "bin/true", Typeflag: tar.TypeSymlink, Linkname: "busybox"},
		{Name: "bin/sh", Typeflag: tar.TypeSymlink, Linkname: "busybox"},
		{Name: "bin/sleep", Typeflag: tar.TypeSymlink, Linkname: "busybox"},
	} {
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		if h.Size > 0 {
			if _, err := w.Write(busybox); err != nil {
				return err
			}
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if _, err := b.onPeer(&buf, "import", "-", peerImage); err != nil {
		return err
	}
	_, err = b.onPeer(nil, "run", "--rm", peerImage, "true")
	return err
}
