// Package agent turns what the kernel of one network namespace reports into flows and sends them to a collector.
package agent
