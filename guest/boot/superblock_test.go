//go:build linux

package boot

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"dhow/internal/testkit"
)

// mke2fs makes an ext4 image of that size and returns its first MiB.
func mke2fs(t *testing.T, size int64, args ...string) (name string, head []byte) {
	t.Helper()
	bin, err := exec.LookPath("mke2fs")
	if err != nil {
		if bin = "/sbin/mke2fs"; !exists(bin) {
			testkit.Need(t, err, "run `make deps`")
		}
	}
	name = filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(name, size); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(bin, append(append([]string{"-q", "-F", "-t", "ext4"}, args...), name)...).CombinedOutput()
	if err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	return name, readStart(t, name)
}

func exists(name string) bool { _, err := os.Stat(name); return err == nil }

func readStart(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b[:min(len(b), blankSize)]
}

func TestDecide(t *testing.T) {
	_, good := mke2fs(t, 64<<20, "-O", "metadata_csum,64bit", "-L", labelData)
	_, old := mke2fs(t, 64<<20, "-O", "^metadata_csum,^64bit", "-b", "1024")
	edit := func(src []byte, f func(sb []byte)) []byte {
		b := bytes.Clone(src)
		f(b[sbOffset:])
		if binary.LittleEndian.Uint32(b[sbOffset+sbROCompat:])&roMetadataCsum != 0 {
			binary.LittleEndian.PutUint32(b[sbOffset+sbChecksum:], sbSum(b[sbOffset:sbOffset+sbSize]))
		}
		return b
	}
	le := binary.LittleEndian
	zero := make([]byte, blankSize)
	speck := make([]byte, blankSize)
	speck[blankSize-1] = 1
	unfinished := bytes.Clone(good)
	setLabel(unfinished, labelBeingFormed)
	corrupt := bytes.Clone(good)
	corrupt[sbOffset+0x20]++
	for _, c := range []struct {
		name string
		head []byte
		act  diskAction
		why  string
	}{
		{"clean", good, actMount, ""},
		{"clean, old features", old, actMount, ""},
		{"all zero", zero, actFormat, "empty"},
		{"no bytes at all", nil, actFormat, "empty"},
		{"zero but for the last byte", speck, actRefuse, "not an ext4"},
		{"a partition table", append(append(make([]byte, 510), 0x55, 0xAA), zero[512:]...), actRefuse, "not an ext4"},
		{"unfinished format", unfinished, actFormat, "did not finish"},
		{"journal to replay", edit(good, func(sb []byte) { sb[sbIncompat] |= incompatRecover }), actCheck, "journal"},
		{"errors", edit(good, func(sb []byte) { le.PutUint16(sb[sbState:], stateValid|stateErrors) }), actCheck, "errors"},
		{"error count", edit(good, func(sb []byte) { le.PutUint32(sb[sbErrorCount:], 3) }), actCheck, "errors"},
		{"not unmounted", edit(old, func(sb []byte) { le.PutUint16(sb[sbState:], 0) }), actCheck, "not unmounted"},
		{"orphans", edit(good, func(sb []byte) { le.PutUint16(sb[sbState:], stateValid|stateOrphan) }), actCheck, "deleted"},
		{"wrong checksum", corrupt, actCheck, "checksum"},
		{"impossible block size", edit(good, func(sb []byte) { le.PutUint32(sb[sbLogBlock:], 40) }), actCheck, "block size"},
		{"no blocks", edit(old, func(sb []byte) { le.PutUint32(sb[sbBlocksLo:], 0) }), actCheck, "0 blocks"},
	} {
		act, _, why := decide(c.head)
		if act != c.act || !strings.Contains(why, c.why) || c.why == "" && why != "" {
			t.Errorf("%s: action %d (%q), want %d (%q)", c.name, act, why, c.act, c.why)
		}
	}
}

func TestSuperblockSizeAndLabel(t *testing.T) {
	for _, blockSize := range []string{"1024", "4096"} {
		_, head := mke2fs(t, 48<<20, "-b", blockSize, "-L", "abc")
		sb, err := parseSuperblock(head)
		if err != nil || sb.Size() != 48<<20 || sb.Label != "abc" || !sb.Clean {
			t.Errorf("block size %s: %+v, %v", blockSize, sb, err)
		}
	}
}

// hostTool runs the real e2fsprogs of the machine that tests.
func hostTool(t *testing.T) tool {
	return func(argv ...string) (int, error) {
		out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
		if e, ok := err.(*exec.ExitError); ok {
			t.Logf("%v: %s", argv, out)
			return e.ExitCode(), nil
		}
		return 0, err
	}
}

// A format that is cut off after any of its writes leaves a disk that is
// formatted again, or the finished one.
func TestFormatIsAllOrNothing(t *testing.T) {
	for _, tool := range []string{"/sbin/mke2fs", "/sbin/e2fsck"} {
		_, err := os.Stat(tool)
		testkit.Need(t, err, "run `make deps`")
	}
	const size = 256 << 20
	dir := t.TempDir()
	disk, err := os.Create(filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if err := disk.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := format(hostTool(t), disk, size, dir); err != nil {
		t.Fatal(err)
	}
	if exists(filepath.Join(dir, "format.img")) {
		t.Error("the temporary image is left")
	}
	head := readStart(t, disk.Name())
	act, sb, why := decide(head)
	if act != actMount || sb.Label != labelData || sb.Size() != size {
		t.Errorf("after format: %d %+v %s", act, sb, why)
	}
	if out, err := exec.Command("/sbin/e2fsck", "-f", "-n", disk.Name()).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
	// The states between the writes, as format's order makes them.
	for name, part := range map[string][]byte{
		"before the superblock": make([]byte, blankSize),
		"superblock only": func() []byte {
			b := make([]byte, blankSize)
			copy(b, head[:4096])
			setLabel(b, labelBeingFormed)
			return b
		}(),
		"all but the label": func() []byte { b := bytes.Clone(head); setLabel(b, labelBeingFormed); return b }(),
	} {
		if act, _, why := decide(part); act != actFormat {
			t.Errorf("%s: action %d (%s), want format", name, act, why)
		}
	}
}

func FuzzDecide(f *testing.F) {
	b := make([]byte, 4096)
	binary.LittleEndian.PutUint16(b[sbOffset+sbMagic:], ext4Magic)
	f.Add(b)
	f.Add([]byte{})
	f.Add(make([]byte, sbOffset+sbSize))
	f.Fuzz(func(t *testing.T, head []byte) {
		act, sb, _ := decide(head)
		if act == actFormat && !allZero(head) && sb.Label != labelBeingFormed {
			t.Fatal("would format a disk that holds something")
		}
		if act == actMount && (sb.Size() <= 0 || sb.BlockSize < 1024) {
			t.Fatalf("mounts %+v", sb)
		}
	})
}
