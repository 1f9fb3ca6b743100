//go:build linux

package enter

import (
	"reflect"
	"testing"
)

func sample() *Config {
	return &Config{
		ID: "abc", Flags: Terminal | ReadonlyRoot, Join: []Join{{4, 1 << 30}}, Unshare: 1 << 17,
		RootMounts: []Mount{{Kind: MountFS, Type: "overlay", Source: "overlay", Data: "lowerdir=a:b", Dir: "/layers", MS: 1}},
		RootPath:   "/run/dhow/.root", InitPropagation: 5, RootPropagation: 6,
		Mounts: []Mount{
			{Type: "proc", Source: "proc", Target: "/proc", MS: 14, Flags: RealTarget},
			{Kind: MountBind, Flags: Recursive, Source: "/a", Target: "/b", AttrSet: 1, AttrClear: 2, RecSet: 3, RecClear: 4, Propagation: 5},
		},
		Devices: []Device{{"/dev/null", 0o20666, 1, 3, 0, 5}}, Links: []Pair{{"/dev/fd", "/proc/self/fd"}},
		Masked: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys", ""},
		Hostname: "h", Domainname: "d", Sysctl: []Pair{{"net/x", "1"}},
		Args: []string{"sh", "-c", ""}, Env: []string{"A=1"}, Cwd: "/", UID: 1, GID: 2, Gids: []uint64{2, 3},
		User: "bob:staff", Groups: []string{"video"}, Rlimits: []Rlimit{{7, 1024, 1 << 63}}, Umask: 0o77,
		CapDrop: 1 << 40, CapEff: 2, CapPrm: 3, CapInh: 4, CapAmb: 5,
		Seccomp: []byte{0, 1, 2, 255}, SeccompFlags: 4, Keyring: "_ses.abc", Personality: 9, Rows: 24, Cols: 80,
	}
}

// TestConfigRoundTrip also sees that no field is forgotten by the codec.
func TestConfigRoundTrip(t *testing.T) {
	c := sample()
	v := reflect.ValueOf(*c)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("the sample leaves %s zero", v.Type().Field(i).Name)
		}
	}
	for name, a := range map[string]*arena{"heap": nil, "arena": {buf: make([]byte, 1<<16)}, "full arena": {buf: make([]byte, 100)}} {
		got, err := decodeConfig(c.Encode(), a)
		if err != nil {
			t.Fatal(name, err)
		}
		if !reflect.DeepEqual(got, c) {
			t.Errorf("%s:\ngot  %+v\nwant %+v", name, got, c)
		}
	}
}

func TestConfigCutShortIsAnError(t *testing.T) {
	b := sample().Encode()
	for n := range b {
		if _, err := DecodeConfig(b[:n]); err == nil {
			t.Fatalf("the first %d of %d bytes are taken for a config", n, len(b))
		}
	}
	if _, err := DecodeConfig(append(b, 0)); err == nil {
		t.Error("a byte too many is taken")
	}
}

func FuzzDecodeConfig(f *testing.F) {
	f.Add(sample().Encode())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) { _, _ = DecodeConfig(b) })
}

func TestReport(t *testing.T) {
	a := Report{Kind: Failed, Code: CodeExec, Errno: 2, Op: "exec", Path: "/bin/x"}
	b := Report{Kind: Ready}
	stream := b.Encode(a.Encode(nil))
	for n := range stream { // whatever the pieces
		rest := stream[:n]
		for {
			_, r, ok, err := DecodeReport(rest)
			if err != nil {
				t.Fatal(err)
			}
			if !ok {
				break
			}
			rest = r
		}
	}
	got, rest, ok, err := DecodeReport(stream)
	if err != nil || !ok || got != a {
		t.Fatalf("%+v %t %v", got, ok, err)
	}
	if got, rest, ok, _ = DecodeReport(rest); !ok || got != b || len(rest) != 0 {
		t.Fatalf("%+v %t, %d bytes left", got, ok, len(rest))
	}
	if _, _, _, err := DecodeReport([]byte{0, 0}); err == nil {
		t.Error("an empty report is taken")
	}
}

func TestSplit(t *testing.T) {
	for path, want := range map[string][2]string{
		"/a/b": {"/a", "b"}, "/a": {"/", "a"}, "/": {"/", ""}, "/a/b/": {"/a", "b"}, "/a//b": {"/a/", "b"},
	} {
		if dir, name := split(path); dir != want[0] || name != want[1] {
			t.Errorf("split(%q) = %q, %q", path, dir, name)
		}
	}
}
