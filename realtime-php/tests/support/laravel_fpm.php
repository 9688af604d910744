<?php

declare(strict_types=1);

require __DIR__ . '/laravel.php';

echo json_encode(['sapi' => PHP_SAPI, 'cached' => opcache_is_script_cached(__DIR__ . '/laravel.php'), 'results' => laravel_results()]);
