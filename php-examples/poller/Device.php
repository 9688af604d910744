<?php

declare(strict_types=1);

/** A machine in a plant, made up: its temperature wanders, and now and then it runs hot. */
final class Device
{
    private float $temperature;
    private float $load;
    private int $hotFor = 0;

    public function __construct(public readonly int $number)
    {
        $this->temperature = mt_rand(350, 550) / 10;
        $this->load = mt_rand(20, 70);
    }

    /**
     * What it says now.
     *
     * @return array{temperature: float, load: int}
     */
    public function read(): array
    {
        $this->hotFor = $this->hotFor > 0 ? $this->hotFor - 1 : (mt_rand(1, 2000) === 1 ? 40 : 0);
        $wanted = $this->hotFor > 0 ? 88.0 : 35 + $this->load / 4;
        $this->load = max(0, min(100, $this->load + mt_rand(-30, 30) / 10));
        $this->temperature += ($wanted - $this->temperature) / 20 + mt_rand(-4, 4) / 10;

        return ['temperature' => round($this->temperature, 1), 'load' => (int) round($this->load)];
    }
}
