package machine

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// kept are machine-wide settings that a kubelet writes. It gets files instead,
// so that the real ones stay as they are.
var kept = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// isolate gives the process cgroups and mounts of its own.
func (c Config) isolate() error {
	for _, g := range c.Cgroups {
		if err := os.WriteFile(filepath.Join(g.Path, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join a cgroup: %w", err)
		}
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make a namespace of cgroups: %w", err)
	}
	for _, step := range []func() error{
		func() error { return mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return mount("proc", "/proc", "proc", 0, "") },
		func() error { return mount("sysfs", "/sys", "sysfs", 0, "") },
		c.mountCgroups,
		func() error { return mount("run", "/run", "tmpfs", 0, "mode=755") },
		func() error { return directories("/run/netns", "/run/lock") },
		c.overlay,
		c.bind,
		c.keepSettings,
		// What kubelet and containerd mount must reach containers; it does not leave this machine.
		func() error { return mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "") },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte(c.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return nil
}

func mount(source, target, fstype string, flags uintptr, options string) error {
	if err := unix.Mount(source, target, fstype, flags, options); err != nil {
		return fmt.Errorf("mount %s %s (%s): %w", fstype, target, options, err)
	}
	return nil
}

func directories(all ...string) error {
	for _, dir := range all {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	return nil
}

// mountCgroups mounts each hierarchy where it was, with the machine's group as
// its root.
func (c Config) mountCgroups() error {
	const root = "/sys/fs/cgroup"
	if len(c.Cgroups) > 1 || c.Cgroups[0].Mount != root {
		if err := mount("cgroup", root, "tmpfs", 0, "mode=755"); err != nil {
			return err
		}
	}
	for _, g := range c.Cgroups {
		if err := directories(g.Mount); err != nil {
			return err
		}
		if err := mount("cgroup", g.Mount, g.Type, 0, g.Options); err != nil {
			return err
		}
		if g.Type == "cgroup2" {
			if err := leaf(g.Mount); err != nil {
				return err
			}
		}
	}
	return nil
}

// leaf moves the process below its group, which may then have groups with
// controllers: version 2 allows processes in leaves only.
func leaf(group string) error {
	own := filepath.Join(group, "init")
	if err := directories(own); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(own, "cgroup.procs"), []byte("0"), 0); err != nil {
		return fmt.Errorf("join a cgroup: %w", err)
	}
	return delegate(group)
}

// overlay keeps off the real machine what daemons write.
func (c Config) overlay() error {
	for _, dir := range []string{"var", "etc", "opt"} {
		upper, work := filepath.Join(c.Dir, "overlay", dir), filepath.Join(c.Dir, "overlay", dir+".work")
		if err := directories(upper, work); err != nil {
			return err
		}
		if err := mount("overlay", "/"+dir, "overlay", 0, fmt.Sprintf("lowerdir=/%s,upperdir=%s,workdir=%s", dir, upper, work)); err != nil {
			return err
		}
	}
	return nil
}

func (c Config) bind() error {
	for target, source := range c.Binds {
		if err := directories(source, target); err != nil {
			return err
		}
		if err := mount(source, target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

func (c Config) keepSettings() error {
	dir := filepath.Join(c.Dir, "settings")
	for name, value := range kept {
		file := filepath.Join(dir, name)
		if err := directories(filepath.Dir(file)); err != nil {
			return err
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return fmt.Errorf("keep a setting: %w", err)
		}
		if err := mount(file, filepath.Join("/proc/sys", name), "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}
