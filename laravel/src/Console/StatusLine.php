<?php

declare(strict_types=1);

namespace Realtime\Laravel\Console;

use Symfony\Component\Console\Output\OutputInterface;

/** One line that counts, on a terminal; nothing elsewhere. */
final class StatusLine
{
    private const EVERY_S = 1.0;

    private float $drawnAt = 0.0;
    private bool $isOpen = false;

    public function __construct(private OutputInterface $output) {}

    /** Draws it, once a second at most. @param callable(float): string $text is told the seconds since the last time; 0: none */
    public function draw(callable $text): void
    {
        $now = microtime(true);
        if ($now - $this->drawnAt < self::EVERY_S || !$this->output->isDecorated() || $this->output->getVerbosity() < OutputInterface::VERBOSITY_NORMAL) {
            return;
        }
        $this->output->write("\r\033[2K" . $text($this->drawnAt === 0.0 ? 0.0 : $now - $this->drawnAt));
        $this->drawnAt = $now;
        $this->isOpen = true;
    }

    /** What is written next stands below it. */
    public function end(): void
    {
        $this->isOpen && $this->output->writeln('');
        $this->isOpen = false;
    }
}
