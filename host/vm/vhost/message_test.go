package vhost

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseHeader(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     header
		err      string
	}{
		{"get features", "01000000 01000000 00000000", header{Request: getFeatures, Flags: 1}, ""},
		{"needs reply", "05000000 09000000 48000000", header{setMemTable, 9, 72}, ""},
		{"largest", "18000000 01000000 00020000", header{getConfig, 1, 512}, ""},
		{"too large", "18000000 01000000 01020000", header{}, "513 bytes"},
		{"huge", "18000000 01000000 ffffffff", header{}, "4294967295 bytes"},
		{"version 2", "01000000 02000000 00000000", header{}, "version 2"},
		{"a reply", "01000000 05000000 00000000", header{}, "is a reply"},
		{"short", "01000000 01000000 000000", header{}, "too short"},
	} {
		h, err := parseHeader(unhex(t, c.in))
		switch {
		case c.err == "" && (err != nil || h != c.want):
			t.Errorf("%s: %+v, %v; want %+v", c.name, h, err, c.want)
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: error %v, want %q", c.name, err, c.err)
		}
	}
}

func TestAppendReply(t *testing.T) {
	got := appendReply(nil, getVringBase, []byte{1, 0, 0, 0, 0x34, 0x12, 0, 0})
	want := unhex(t, "0b000000 05000000 08000000 01000000 34120000")
	if !bytes.Equal(got, want) {
		t.Errorf("% x, want % x", got, want)
	}
	if got := appendReply(nil, getConfig, []byte{}); !bytes.Equal(got, unhex(t, "18000000 05000000 00000000")) {
		t.Errorf("empty reply: % x", got)
	}
}

func TestParsePayloads(t *testing.T) {
	if s, err := parseVringState(unhex(t, "01000000 80000000")); err != nil || s != (vringState{1, 128}) {
		t.Errorf("state %+v, %v", s, err)
	}
	a, err := parseVringAddr(unhex(t, "02000000 01000000 1122334455667788 0100000000000000 0200000000000000 0300000000000000"))
	if err != nil || a != (vringAddr{2, 1, 0x8877665544332211, 1, 2}) {
		t.Errorf("addr %+v, %v", a, err)
	}
	table := "01000000 00000000" + "0010000000000000 0020000000000000 0030000000000000 0040000000000000"
	r, err := parseMemTable(unhex(t, table))
	if err != nil || len(r) != 1 || r[0] != (regionConfig{0x1000, 0x2000, 0x3000, 0x4000}) {
		t.Errorf("table %+v, %v", r, err)
	}
	for _, bad := range []string{"", "00000000 00000000", "09000000 00000000", "02000000 00000000" + table[17:], "ffffffff 00000000"} {
		if r, err := parseMemTable(unhex(t, bad)); err == nil {
			t.Errorf("table %q: %+v", bad, r)
		}
	}
	for n := range 60 {
		if _, err := parseVringState(make([]byte, n)); (err == nil) != (n == 8) {
			t.Errorf("state of %d bytes: %v", n, err)
		}
		if _, err := parseVringAddr(make([]byte, n)); (err == nil) != (n == 40) {
			t.Errorf("addr of %d bytes: %v", n, err)
		}
		if _, err := parseU64(make([]byte, n)); (err == nil) != (n == 8) {
			t.Errorf("u64 of %d bytes: %v", n, err)
		}
	}
}

func TestConfigReply(t *testing.T) {
	space := []byte{3, 0, 0, 0, 0, 0, 0, 0}
	got, err := configReply(unhex(t, "00000000 08000000 00000000 0000000000000000"), space)
	if err != nil || !bytes.Equal(got, unhex(t, "00000000 08000000 00000000 0300000000000000")) {
		t.Errorf("% x, %v", got, err)
	}
	for _, beyond := range []string{"01000000 08000000 00000000", "ffffffff 02000000 00000000", "00000000 ffffffff 00000000", "ffffffff ffffffff 00000000"} {
		if got, err := configReply(unhex(t, beyond), space); got != nil || err != nil {
			t.Errorf("%s: % x, %v", beyond, got, err)
		}
	}
	if _, err := configReply(make([]byte, 11), space); err == nil {
		t.Error("a short request has an answer")
	}
}
