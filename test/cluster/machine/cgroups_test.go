package machine

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHierarchies(t *testing.T) {
	for _, c := range []struct {
		name, mounts, own string
		want              []Cgroup
	}{
		{
			"version 1: one each, at its own group",
			"24 1 0:22 / /proc rw - proc proc rw\n" +
				"35 24 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n" +
				"36 24 0:31 / /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory\n" +
				"37 24 0:32 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n" +
				"38 24 0:33 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
			"4:memory:/user/1\n3:name=systemd:/\n2:cpu,cpuacct:/\n0::/\n",
			[]Cgroup{
				{"cgroup", "cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct"},
				{"cgroup", "memory", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/user/1"},
				{"cgroup", "none,name=systemd", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/systemd"},
			},
		},
		{
			"a container's mount begins at the container's group",
			"36 24 0:31 /box /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
			"4:memory:/box/inner\n",
			[]Cgroup{{"cgroup", "memory", "/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/inner"}},
		},
		{
			"version 2: the root",
			"30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n",
			"0::/user.slice/session-1.scope\n",
			[]Cgroup{{"cgroup2", "", "/sys/fs/cgroup", "/sys/fs/cgroup"}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseHierarchies(c.mounts, c.own)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	for _, bad := range []string{"", "nonsense\n", "24 1 0:22 / /proc rw - proc proc rw\n"} {
		if got, err := parseHierarchies(bad, ""); err == nil {
			t.Errorf("of %q: %v", bad, got)
		}
	}
}
