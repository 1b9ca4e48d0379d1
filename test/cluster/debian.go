package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// installed are programs of Debian packages that must be on this machine.
var installed = map[string]string{"iptables": "iptables", "conntrack": "conntrack", "ip": "iproute2", "nft": "nftables"}

// install installs the Debian packages that are missing, and says so.
func install(ctx context.Context, progress io.Writer) error {
	for program, pkg := range installed {
		if _, err := exec.LookPath(program); err == nil {
			continue
		}
		fmt.Fprintf(progress, "installing the Debian package %s, which has %s\n", pkg, program)
		if err := apt(ctx, "", "install", "-y", "-qq", "--no-install-recommends", pkg); err != nil {
			return err
		}
	}
	return nil
}

// unpacked finds a program on this machine, or takes it out of a Debian package
// without installing that: an installed package would start a daemon.
func unpacked(ctx context.Context, progress io.Writer, pkg, program string) (string, error) {
	if _, err := os.Stat("/" + program); err == nil {
		return "/" + program, nil
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "debian", pkg)
	path := filepath.Join(dir, program)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	fmt.Fprintf(progress, "unpacking the Debian package %s into %s\n", pkg, dir)
	if err := unpack(ctx, pkg, dir); err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("find %s in the Debian package %s: %w", program, pkg, err)
	}
	return path, nil
}

func unpack(ctx context.Context, pkg, dir string) (err error) {
	part, err := os.MkdirTemp("", "flowaudit-debian-")
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(part)) }()
	if err := os.Chmod(part, 0o755); err != nil { // apt downloads as another user
		return fmt.Errorf("open the directory to apt: %w", err)
	}
	if err := apt(ctx, part, "download", "-qq", pkg); err != nil {
		return err
	}
	found, err := filepath.Glob(filepath.Join(part, pkg+"_*.deb"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("download the Debian package %s: %d files came: %w", pkg, len(found), err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return run(exec.CommandContext(ctx, "dpkg-deb", "-x", found[0], dir))
}

// apt runs apt-get; the lists of packages are renewed if it fails with the old ones.
func apt(ctx context.Context, dir string, args ...string) error {
	get := func(args ...string) error {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		return run(cmd)
	}
	if get(args...) == nil {
		return nil
	}
	return errors.Join(get("update", "-qq"), get(args...))
}

func run(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("run %s: %w: %s", cmd, err, out)
	}
	return nil
}
