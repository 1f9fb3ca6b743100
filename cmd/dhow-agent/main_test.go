//go:build linux

package main

import (
	"fmt"
	"os"
	"testing"

	proto "dhow/proto/control"
)

func boot(t *testing.T, text string) *os.File {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	if _, err := w.WriteString(text); err != nil {
		t.Fatal(err)
	}
	_ = w.Close()
	return r
}

func TestABootOfAnotherProtocolReachesTheHello(t *testing.T) {
	for _, text := range []string{
		`{"protocol":1000,"version":"9.9.9","key":"a2V5"}`,
		`{"protocol":1000,"version":"9.9.9","network":"another type","key":"a2V5"}`,
	} {
		o, err := options(nil, boot(t, text))
		if err != nil || o.Boot == nil || o.Boot.Protocol != 1000 || o.Boot.Version != "9.9.9" || string(o.Boot.Key) != "key" {
			t.Errorf("%s: %+v, %v", text, o.Boot, err)
		}
	}
}

func TestABootThatCannotBeReadIsAnError(t *testing.T) {
	own := fmt.Sprintf(`{"protocol":%d,"network":"another type"}`, proto.Protocol)
	for _, text := range []string{``, own, `{"protocol":1000,`} {
		if _, err := options(nil, boot(t, text)); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
}
