// Package monitor is what a process says about itself: its log, and metrics, health and profiles over HTTP.
package monitor
