//go:build linux

package agent

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"dhow/guest/db"
	"dhow/internal/testkit"
	proto "dhow/proto/control"
)

// live runs an agent until the test's end and returns once it is ready.
func live(t *testing.T, o Options) {
	t.Helper()
	ready := make(chan struct{})
	o.Ready = func() { close(ready) }
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Run(ctx, o) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-ended:
		ended <- nil
		t.Fatalf("the agent ended: %v", err)
	}
}

// get asks for path on connections that dial makes, and returns the answer's
// status and its message.
func get(t *testing.T, dial func(context.Context) (net.Conn, error), path string) (int, string) {
	t.Helper()
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get("http://d" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	var answer struct{ Message string }
	_ = json.Unmarshal(b, &answer)
	return resp.StatusCode, answer.Message
}

func TestDataOfANewerDhowIsRefusedInAnAnswer(t *testing.T) {
	testkit.NoLeaks(t)
	dir := testkit.ShortDir(t)
	o := Options{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run"), Socket: filepath.Join(dir, "s"), Log: slog.New(slog.DiscardHandler)}
	if err := os.Mkdir(o.Root, 0o700); err != nil {
		t.Fatal(err)
	}
	newer := func(part string) {
		t.Helper()
		d, err := db.Open(filepath.Join(o.Root, "meta.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if err := d.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("schema"))
			if err != nil {
				return err
			}
			return b.Put([]byte(part), binary.BigEndian.AppendUint64(nil, 99))
		}); err != nil {
			t.Fatal(err)
		}
	}
	newer("image")
	live(t, o)
	code, message := get(t, func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "unix", o.Socket) }, "/v1.44/info")
	if code != 503 || !strings.HasPrefix(message, "the machine's engine cannot start: the data disk was written by a newer dhow (image schema 99, this one knows ") {
		t.Errorf("%d %s", code, message)
	}
	newer("image") // the file was let go
}

func TestAHostOfAnotherProtocolIsGreeted(t *testing.T) {
	testkit.NoLeaks(t)
	dir := testkit.ShortDir(t)
	vs := testkit.NewVsock(t)
	host := vs.Host()
	key := []byte(strings.Repeat("k", 32))
	l, err := host.Listen(proto.PortReady)
	if err != nil {
		t.Fatal(err)
	}
	told := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = proto.AdmitGuest(c, key, proto.PortReady)
		}
		told <- err
		if c != nil {
			_, _ = c.Read(make([]byte, 1)) // as long as the agent lives
			_ = c.Close()
		}
	}()
	t.Cleanup(func() { _ = l.Close() })
	root := filepath.Join(dir, "root")
	live(t, Options{
		Root: root, Run: filepath.Join(dir, "run"), Version: "1.2.3", Log: slog.New(slog.DiscardHandler),
		Boot: &proto.Boot{Protocol: proto.Protocol + 1, Version: "9.9.9", Key: key}, vsock: vs.Guest(),
	})
	dial := func(port uint32) func(context.Context) (net.Conn, error) {
		return func(ctx context.Context) (net.Conn, error) {
			c, err := host.Dial(ctx, port)
			if err != nil {
				return nil, err
			}
			return c, proto.ProveHost(c, key, port)
		}
	}
	select {
	case err := <-told:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the host is not told that the agent is ready")
	}
	conn, err := dial(proto.PortControl)(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c := proto.NewClient(conn)
	defer c.Close()
	var w proto.Welcome
	if err := c.Call(t.Context(), proto.VerbHello, proto.Hello{Protocol: proto.Protocol + 1, Version: "9.9.9"}, &w); err != nil || w.Protocol != proto.Protocol || w.Version != "1.2.3" {
		t.Errorf("%+v, %v", w, err)
	}
	code, message := get(t, dial(proto.PortDocker), "/info")
	if code != 503 || !strings.Contains(message, "(dhow 9.9.9), this agent ") {
		t.Errorf("%d %s", code, message)
	}
	if _, err := os.Stat(root); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("something was opened for it: %v", err)
	}
}
