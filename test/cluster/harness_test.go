package cluster_test

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/flowaudit/flowaudit/test/cluster"
)

// rootNetwork is what the machine's own network consists of.
func rootNetwork() (string, error) {
	var all strings.Builder
	for _, args := range [][]string{{"-o", "link"}, {"-o", "addr"}, {"route", "show", "table", "all"}, {"-6", "route", "show", "table", "all"}, {"rule"}} {
		out, err := exec.Command("ip", args...).Output()
		if err != nil {
			return "", fmt.Errorf("ip %s: %w", strings.Join(args, " "), err)
		}
		for line := range strings.Lines(string(out)) {
			// Times of router advertisements and leases count down.
			fields := strings.Fields(line)
			for i, f := range fields {
				if f == "expires" || f == "valid_lft" || f == "preferred_lft" {
					fields = fields[:i]
					break
				}
			}
			fmt.Fprintln(&all, strings.Join(fields, " "))
		}
	}
	return all.String(), nil
}

func TestTheMachinesNetworkIsLeftAlone(t *testing.T) {
	now, err := rootNetwork()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(lab.networkBefore, now); diff != "" {
		t.Errorf("the cluster changed it:\n%s", diff)
	}
}

func TestAPodsAddressIsUsedAgainAtOnce(t *testing.T) {
	namespace(t, "reuse")
	first := barePod(t, "reuse", "first", "node1")
	if err := lab.Client.CoreV1().Pods("reuse").Delete(t.Context(), "first", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Pods(t.Context(), "reuse", "", 0); err != nil {
		t.Fatal(err)
	}
	second := barePod(t, "reuse", "second", "node1")
	if first.IPv4 != second.IPv4 || first.IPv6 != second.IPv6 || first.UID == second.UID {
		t.Errorf("the first pod had %s and %s, the second has %s and %s", first.IPv4, first.IPv6, second.IPv4, second.IPv6)
	}
}

// namespace makes one that is removed with the test.
func namespace(t *testing.T, name string) {
	t.Helper()
	namespaces := lab.Client.CoreV1().Namespaces()
	if _, err := namespaces.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		now := int64(0)
		err := errors.Join(namespaces.Delete(lab.ctx, name, metav1.DeleteOptions{}),
			lab.Client.CoreV1().Pods(name).DeleteCollection(lab.ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{}))
		if err != nil {
			t.Error(err)
		}
		// Their addresses are free for the next test then.
		if _, err := lab.Running(lab.ctx, name, "", 0); err != nil {
			t.Error(err)
		}
	})
	if err := lab.NamespaceReady(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}

// barePod makes a pod without a controller and waits until it runs.
func barePod(t *testing.T, namespace, name, node string, ports ...int32) *cluster.Pod {
	t.Helper()
	container := corev1.Container{Name: name, Image: "test/" + name + ":1"}
	for _, p := range ports {
		container.Ports = append(container.Ports, corev1.ContainerPort{ContainerPort: p})
	}
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{"name": name}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{container}},
	}
	if _, err := lab.Client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	pods, err := lab.Pods(t.Context(), namespace, "name="+name, 1)
	if err != nil {
		t.Fatal(err)
	}
	return pods[0]
}

// killedEnv makes this program one that starts a cluster and waits to be killed.
const killedEnv = "FLOWAUDIT_TEST_TO_BE_KILLED"

func waitToBeKilled() error {
	c, err := cluster.Start(lab.ctx, cluster.DefaultOptions())
	if err != nil {
		return err
	}
	fmt.Println(c.Dir)
	select {}
}

func TestAKilledRunLeavesNothing(t *testing.T) {
	victim := exec.Command(os.Args[0], "-test.run=^$")
	victim.Env = append(os.Environ(), killedEnv+"=1")
	victim.Stderr = os.Stderr
	out, err := victim.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	dir, err := bufio.NewReader(out).ReadString('\n')
	dir = strings.TrimSpace(dir)
	children := childrenOf(t, victim.Process.Pid)
	if kill := victim.Process.Kill(); err != nil || kill != nil {
		t.Fatal("no cluster to be killed:", err, kill)
	}
	_ = victim.Wait() // it was killed
	if len(children) < 5 {
		t.Errorf("a cluster of %d processes", len(children))
	}
	for deadline := time.Now().Add(10 * time.Second); len(alive(children)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("still running: %v", alive(children))
		}
	}
	if err := cluster.Sweep(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", dir, err)
	}
	left, err := filepath.Glob(fmt.Sprintf("/run/netns/*-%d-*", victim.Process.Pid))
	if err != nil || len(left) > 0 {
		t.Errorf("namespaces left: %v %v", left, err)
	}
}

// childrenOf are the processes that a process started.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var all []int
	for _, l := range lists {
		b, err := os.ReadFile(l)
		if err != nil {
			continue // the thread is gone
		}
		for _, f := range strings.Fields(string(b)) {
			n, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, n)
		}
	}
	return all
}

func alive(pids []int) []int {
	var left []int
	for _, pid := range pids {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err == nil && !strings.Contains(string(b), ") Z ") {
			left = append(left, pid)
		}
	}
	return left
}
