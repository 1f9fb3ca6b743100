package enter

import (
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/user"
)

const passwd = `root:x:0:0:root:/root:/bin/sh
# comment:x:5:5::/c:/c

  bob:x:1000:1001:Bob:/home/bob:/bin/sh
twin:x:1000:2000::/twin:
1234:x:77:78::/num:
short:x:9
:x:10:11::/empty:
bad:x:abc:def::/bad:
plus:x:+12:13::/plus:
huge:x:99999999999999999999:1::/huge:
neg:x:-1:-1::/neg:
nonl:x:55:56::/nonl:/bin/sh`

const group = `root:x:0:root
wheel:x:10:root,bob
video:x:44:bob,eve
#x:x:45:bob
 spaced:x:46:bob
1234:x:88:bob
short:x
bad:x:zz:bob
neg:x:-2:eve
bob:x:1001:
dup:x:1:
dup:x:2:`

// TestAgainstMoby: who a user is has to be what docker says it is.
func TestAgainstMoby(t *testing.T) {
	specs := []string{"", "root", "bob", "twin", "0", "1000", "1234", "short", "77", "4242", "nobody", "bob:wheel", "bob:10", "bob:4711",
		"bob:nogroup", "1000:video", "4242:dup", ":video", ":7", "bad", "plus", "12", "+12", "-1", "2147483647", "2147483648", "99999999999999999999",
		"bob:-1", "bob:2147483648", "a:b:c", "bob:wheel:x", "nonl", "#comment", "# comment", " bob", "bob ", "bob:#x", "bob:spaced", "bob:1234", "neg:wheel"}
	files := [][2]string{{passwd, group}, {passwd, ""}, {"", group}, {"", ""}, {passwd + "\n", group + "\n\n"}, {strings.ReplaceAll(passwd, "\n", "\r\n"), group}}
	for _, f := range files {
		for _, s := range specs {
			compare(t, s, f[0], f[1])
		}
	}
}

func compare(t *testing.T, spec, passwd, group string) {
	t.Helper()
	want, err := user.GetExecUser(spec, &user.ExecUser{Home: "/"}, strings.NewReader(passwd), strings.NewReader(group))
	got, code, name := resolveUser(spec, nil, passwd, group)
	if err != nil {
		if code == 0 {
			t.Errorf("%q: %+v, want the error %v", spec, got, err)
		}
		return
	}
	if want.Uid < 0 || want.Uid > 1<<31-1 || want.Gid < 0 || want.Gid > 1<<31-1 {
		if code == 0 {
			t.Errorf("%q: ids out of range are taken: %+v", spec, got)
		}
		return // an id that the kernel would cut: refused here
	}
	if code != 0 {
		t.Errorf("%q: refused with code %d for %q, want %+v", spec, code, name, want)
		return
	}
	gids := []int{want.Gid}
	for _, g := range want.Sgids {
		if g >= 0 && g <= 1<<31-1 {
			gids = append(gids, g)
		}
	}
	var mine []int
	for _, g := range got.gids {
		mine = append(mine, int(g))
	}
	if int(got.uid) != want.Uid || int(got.gid) != want.Gid || got.home != want.Home || !slices.Equal(mine, gids) {
		t.Errorf("%q: uid %d gid %d home %q groups %v, want %+v", spec, got.uid, got.gid, got.home, mine, want)
	}
}

func FuzzAgainstMoby(f *testing.F) {
	f.Add("bob:video", passwd, group)
	f.Add("0", "root:x:0:0::/:", "")
	f.Fuzz(func(t *testing.T, spec, passwd, group string) {
		// Line length limits and Unicode spaces are the one's own.
		if len(passwd)+len(group) > 4096 || strings.IndexFunc(spec+passwd+group, func(r rune) bool { return r > 126 || r == 0 }) >= 0 {
			return
		}
		compare(t, spec, passwd, group)
	})
}

func TestFurtherGroups(t *testing.T) {
	u, code, _ := resolveUser("bob", []string{"dup", "4711", "44"}, passwd, group)
	if code != 0 {
		t.Fatal(code)
	}
	if want := []uint64{1001, 10, 44, 46, 88, 0, 1, 4711, 44}; !slices.Equal(u.gids, want) {
		// "bad" has no number, which counts as 0, as in moby.
		t.Errorf("groups %v, want %v", u.gids, want)
	}
	for g, want := range map[string]uint64{"nogroup": CodeNoGroup, "-3": CodeBadUser, "99999999999": CodeBadUser} {
		if _, code, name := resolveUser("bob", []string{g}, passwd, group); code != want || name != g {
			t.Errorf("group %q: code %d for %q, want %d", g, code, name, want)
		}
	}
}
