//go:build linux

package api_test

import (
	"bytes"
	"context"
	"io"
	"reflect"
	"strings"
	"testing"

	"dhow/guest/engine"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// exec creates an exec in a running container and returns its ID.
func (r *rig) exec(box string, o client.ExecCreateOptions) string {
	r.t.Helper()
	res, err := r.client().ExecCreate(r.t.Context(), box, o)
	if err != nil {
		r.t.Fatal(err)
	}
	return res.ID
}

func TestExecStreamsAndEnds(t *testing.T) {
	noLeak(t)
	r := newRig(t)
	r.start(r.box("a", "sleep"))
	c := r.client()
	id := r.exec("a", client.ExecCreateOptions{Cmd: []string{"cat"}, AttachStdin: true, AttachStdout: true})
	res, err := c.ExecAttach(t.Context(), id, client.ExecAttachOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(res.Conn, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if err := res.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if _, err := stdcopy.StdCopy(&out, io.Discard, res.Reader); err != nil || out.String() != "hello\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	res.Close()
	got, err := c.ExecInspect(t.Context(), id, client.ExecInspectOptions{})
	if err != nil || got.Running || got.ExitCode != 0 || !strings.HasPrefix(got.ContainerID, "") {
		t.Errorf("%+v, %v", got, err)
	}
	r.refused("POST", "/exec/"+id+"/start", "{}", 409, "exec "+id+" has already run")
	if err := r.e.ContainerKill(context.Background(), "a", ""); err != nil {
		t.Fatal(err)
	}
	r.stop()
}

func TestExecWithTerminalIsRaw(t *testing.T) {
	r := newRig(t)
	r.start(r.box("a", "sleep"))
	id := r.exec("a", client.ExecCreateOptions{Cmd: []string{"echo", "hi"}, TTY: true, AttachStdout: true})
	resp, body := r.do("POST", "/v1.43/exec/"+id+"/start", `{"Tty":true,"ConsoleSize":[20,80]}`)
	if body != "hi\n" || resp.Header.Get("Content-Type") != "application/vnd.docker.raw-stream" {
		t.Errorf("%q %v", body, resp.Header)
	}
	if got := r.e.Last("ExecStart").(engine.ExecStartOptions); !got.Tty || !reflect.DeepEqual(got.ConsoleSize, &[2]uint{20, 80}) {
		t.Errorf("%+v", got)
	}
	id = r.exec("a", client.ExecCreateOptions{Cmd: []string{"echo"}})
	r.do("POST", "/v1.41/exec/"+id+"/start", `{"Tty":true,"ConsoleSize":[20,80]}`)
	if got := r.e.Last("ExecStart").(engine.ExecStartOptions); got.ConsoleSize != nil {
		t.Error("1.41 has no console size")
	}
}

func TestExecThatCannotRunSaysSoInItsStream(t *testing.T) {
	r := newRig(t)
	r.start(r.box("a", "sleep"))
	id := r.exec("a", client.ExecCreateOptions{Cmd: []string{"nosuch"}, AttachStdout: true})
	_, br, head := r.startExec("/exec/"+id+"/start", "{}")
	b, err := io.ReadAll(br)
	const sentence = "exec failed: \"nosuch\": executable file not found in $PATH\r\n"
	if err != nil || !strings.HasPrefix(head, "HTTP/1.1 101 UPGRADED\r\n") || string(b) != "\x01\x00\x00\x00\x00\x00\x00"+string(rune(len(sentence)))+sentence {
		t.Errorf("%q, %v after %q", b, err, head)
	}
	x := r.get("/exec/" + id + "/json").(map[string]any)
	if x["ExitCode"] != float64(127) {
		t.Errorf("%v", x)
	}
	id = r.exec("a", client.ExecCreateOptions{Cmd: []string{"nosuch"}})
	r.refused("POST", "/exec/"+id+"/start", `{"Detach":true}`, 400, `exec failed: "nosuch": executable file not found in $PATH`)
}

func TestExecRequests(t *testing.T) {
	r := newRig(t)
	r.start(r.box("a", "sleep"))
	r.refused("POST", "/containers/a/exec", `{}`, 400, "No exec command specified")
	r.refused("POST", "/containers/x/exec", `{"Cmd":["a"]}`, 404, "No such container: x")
	r.refused("POST", "/exec/x/start", `{}`, 404, "No such exec instance: x")
	r.refused("POST", "/exec/x/start", `{"Detach":true}`, 404, "No such exec instance: x")
	r.refused("POST", "/exec/x/start", `{`, 400, "invalid JSON: unexpected EOF")
	r.refused("POST", "/exec/x/resize?h=1&w=1", "", 404, "No such exec instance: x")
	r.refused("POST", "/exec/x/resize?h=1&w=a", "", 400, `invalid resize width "a": invalid syntax`)
	r.refused("GET", "/exec/x/json", "", 404, "No such exec instance: x")
	want := container.ExecCreateRequest{User: "u", Privileged: true, Tty: true, ConsoleSize: &[2]uint{1, 2}, AttachStdin: true, DetachKeys: "ctrl-a", Env: []string{"A=b"}, WorkingDir: "/w", Cmd: []string{"echo"}}
	id := r.exec("a", client.ExecCreateOptions{User: "u", Privileged: true, TTY: true, ConsoleSize: client.ConsoleSize{Height: 1, Width: 2}, AttachStdin: true, DetachKeys: "ctrl-a", Env: []string{"A=b"}, WorkingDir: "/w", Cmd: []string{"echo"}})
	if got := r.e.Last("ExecCreate").(engine.ExecOptions).ExecCreateRequest; !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	r.want("POST", "/exec/"+id+"/resize?h=3&w=4", "", 200, "")
	r.want("POST", "/exec/"+id+"/start", `{"Detach":true}`, 200, "")
	r.do("POST", "/v1.41/containers/a/exec", `{"Cmd":["a"],"ConsoleSize":[1,2]}`)
	if got := r.e.Last("ExecCreate").(engine.ExecOptions); got.ConsoleSize != nil {
		t.Error("1.41 has no console size")
	}
}

func TestExecsClientThatVanishesEndsIt(t *testing.T) {
	noLeak(t)
	r := newRig(t)
	r.start(r.box("a", "sleep"))
	id := r.exec("a", client.ExecCreateOptions{Cmd: []string{"sleep"}, AttachStdout: true})
	conn, _, _ := r.startExec("/exec/"+id+"/start", "{}")
	_ = conn.Close()
	eventually(t, "the exec ended", func() bool {
		x, err := r.e.ExecInspect(context.Background(), id)
		return err == nil && !x.Running && x.ExitCode != nil
	})
	if err := r.e.ContainerKill(context.Background(), "a", ""); err != nil {
		t.Fatal(err)
	}
	r.stop()
}
